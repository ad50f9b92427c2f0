"""Pictures of an evaluation hold what they should, whatever is missing. What they look like is for eyes."""

import pytest

from tests.training.test_reporting import holds, pixels
from training.evaluation_pictures import calibration_picture
from training.records import Calibration, CalibrationBin, Figure
from training.reporting import RIGHT


def line(name: str | None, rows: int = 40, error: float | None = 0.1) -> Calibration:
    bins = [CalibrationBin(rows // 2, claimed, Figure(0.5, 0.3, 0.7)) for claimed in (0.55, 0.9)]
    return Calibration(metric="ece", slice=name, rows=rows, error=Figure(error), bins=bins)


@pytest.mark.parametrize("lines", [[line(None)], [line(None, error=None), *(line(f"x={n}") for n in range(30))]])
def test_calibration_can_be_drawn(lines: list[Calibration]) -> None:
    png = calibration_picture(lines)
    assert min(pixels(png).shape[:2]) > 200 and holds(png, RIGHT)


def test_slices_of_few_rows_are_not_drawn() -> None:
    assert calibration_picture([line(None), line("x=1", rows=19)]) == calibration_picture([line(None)])
    assert calibration_picture([line(None), line("x=1", rows=20)]) != calibration_picture([line(None)])
