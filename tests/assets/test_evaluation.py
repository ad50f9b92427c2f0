"""What people read of the model beside its baselines: the same rows everywhere, and every figure with its rows."""

from typing import Any

import pyarrow as pa

from assets.evaluation import coverage_table, coverage_words, numbers, standings_table, standings_words
from assets.model_assets import _baselines_words, _differences
from training.comparison import standings
from training.metrics import ACCURACY
from training.outputs.text import TextOutput
from training.records import Coverage, TrainingReport, Verdict
from training.schema import predictions_schema
from training.settings import PromotionSettings

LABELS = {f"s{n:02d}": "yes" if n < 60 else "no" for n in range(94)}


def answers(right: int, samples: Any = LABELS) -> pa.Table:
    """The first `right` of the samples answered right."""
    rows = [
        {"sample_id": s, "subset": "x", "label": LABELS[s], "prediction": LABELS[s] if n < right else "neither"}
        for n, s in enumerate(samples)
    ]
    return pa.Table.from_pylist(rows, predictions_schema(pa.string()))


def beside() -> Any:
    """50 of 94 rows have speech, all of which it answers right; the majority answer is right in 60."""
    rivals = {"text": answers(70), "speech": answers(50, list(LABELS)[:50]), "image": answers(0, [])}
    return standings(answers(80), rivals, "yes", PromotionSettings(), TextOutput({}))


def test_the_best_baseline_is_the_best_on_all_rows_and_its_own_rows_are_told() -> None:
    # Speech is right in all of its 50 rows and, with the majority, in 10 of the other 44: 60 of 94, less than text.
    assert standings_words(beside(), ACCURACY) == (
        "model 0.851, best baseline text 0.745, majority answer 0.638 (accuracy, same 94 test rows)"
    )
    usual, _, speech, image = beside()
    assert standings_words([usual, speech], ACCURACY).endswith(
        "best baseline speech 0.638, majority answer 0.638 (accuracy, same 94 test rows); speech on its own 50 rows "
        "1.000, the model there 1.000"
    )
    assert "no baseline measured" in standings_words([usual, image], ACCURACY)
    table = str(standings_table(beside(), ACCURACY).value).splitlines()
    assert table[2:] == [
        "| majority | 0.638 | 0.851 | &lt; 0.001 | 94 | 0.638 | 0.851 |",
        "| text | 0.745 | 0.851 | &lt; 0.001 | 94 | 0.745 | 0.851 |",
        "| speech | 0.638 | 0.851 | &lt; 0.001 | 50 | 1.000 | 1.000 |",
        "| image | 0.638 | 0.851 | &lt; 0.001 | 0 |  |  |",
    ]


def report(name: str, n: int, value: float | None, filled: float) -> TrainingReport:
    return TrainingReport(
        name=name,
        mlflow_run_id="r",
        version=None,
        dataset_fingerprint="d",
        training_fingerprint="t",
        metrics={"n": n, "accuracy": value, "f1": None},
        subsets={name: value},
        rows={name: n},
        filled={name: filled},
        test_rows=94,
        seconds={},
    )


def test_baselines_stand_on_the_same_rows_and_on_their_own() -> None:
    assert _baselines_words([], ACCURACY) == "none"
    reports = [report("text", 94, 0.745, 0.745), report("speech", 50, 1.0, 0.638), report("image", 0, None, 0.638)]
    assert _baselines_words(reports, ACCURACY) == (
        "text 0.745, speech 0.638, image 0.638 on the same 94 test rows (speech 1.000 on its own 50, image not "
        "measured (no test row has its inputs))"
    )


def test_numbers_are_flat_and_without_what_was_not_measured() -> None:
    assert numbers(report("speech", 50, 1.0, 0.638)) == {
        "test_accuracy": 1.0,
        "n": 50,
        "accuracy": 1.0,
        "accuracy/speech": 1.0,
        "n/speech": 50,
        "filled_accuracy/speech": 0.638,
    }
    verdict = Verdict(version=1, champion_before="none", champion="1", standings=beside()[:2])
    flat = _differences(verdict)
    assert flat["test_n"] == 94 and flat["difference/text"] == round(10 / 94, 4) and flat["p/majority"] < 0.001
    assert _differences(Verdict(version=1, champion_before="1", champion="1")) == {}


def test_what_is_withheld_is_told_with_its_rows() -> None:
    lines = [
        Coverage(metric="accuracy", least=least, rows=rows, of=94, value=value)
        for least, rows, value in ((0.0, 94, 0.8), (0.9, 0, None))
    ]
    assert coverage_words([]) == []
    first, second = coverage_words(lines)
    assert first == (
        "it answers 94 of 94 rows with a probability of at least 0 (model.abstain_below), accuracy 0.800 there"
    )
    assert second.endswith("a probability of at least 0.9 (model.abstain_below)")
    table = str(coverage_table(lines).value).splitlines()
    assert table[2:] == ["| 0 | 94 | 1.000 | accuracy | 0.800 |", "| 0.9 | 0 | 0.000 | accuracy |  |"]
