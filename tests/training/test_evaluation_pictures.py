"""Pictures of an evaluation hold what they should, whatever is missing. What they look like is for eyes."""

from tests.training.test_reporting import holds
from training.evaluation_pictures import calibration_picture, fairness_picture
from training.records import Calibration, CalibrationBin, Fairness, Figure, GroupFigure
from training.reporting import ORANGE, RIGHT


def line(name: str | None, rows: int = 40, error: float | None = 0.1) -> Calibration:
    bins = [CalibrationBin(rows // 2, claimed, Figure(0.5, 0.3, 0.7)) for claimed in (0.55, 0.9)]
    return Calibration(metric="ece", slice=name, rows=rows, error=Figure(error), bins=bins)


def test_calibration_can_be_drawn_and_slices_of_few_rows_are_not() -> None:
    lines = [line(None), line("x=1", error=None)]
    png = calibration_picture([*lines, line("x=2", rows=19)])
    assert png == calibration_picture(lines) and holds(png, RIGHT)


def test_groups_can_be_drawn_and_gaps_beyond_chance_are_marked() -> None:
    sure, unsure = Figure(0.2, 0.1, 0.3), Figure(0.2, -0.1, 0.5)
    few = GroupFigure("c", 3, Figure(1.0, 0.4, 1.0), Figure(), False)
    none = Fairness(column="age", metric="accuracy", rows=40, groups=[], note="57 different values")

    def picture(rest: Figure) -> bytes:
        group = GroupFigure("a", 40, Figure(0.7, 0.6, 0.8), rest, True)
        return fairness_picture([Fairness(column="sex", metric="accuracy", rows=43, groups=[group, few]), none])

    assert holds(picture(sure), ORANGE)
    told = picture(unsure)
    assert holds(told, RIGHT) and not holds(told, ORANGE)
