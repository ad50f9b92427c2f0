"""The first sentence of the report, and the end of a run: the same figures, on the same rows, in words."""

from typing import Any

import click
import pytest
from click.testing import CliRunner

from orchestration.answers import say_summary
from orchestration.report import verdict_sentence
from orchestration.run import DatasetSummary, ItemCounts, ModelSummary, Summary
from training.records import Comparison, Means, Standing


def standing(name: str, a: float, b: float, rows: int = 64, better: bool = False, own: Means | None = None) -> Standing:
    p = 0.01 if better else 0.3
    figures = Comparison(a=a, b=b, rows=rows, difference=a - b, low=-1, high=1, p=p, better=better, differ=9, needed=5)
    return Standing(name=name, all=figures, answered=own or Means(a=a, b=b, rows=rows))


CASES: list[tuple[list[Standing], list[str], str]] = [
    (
        [standing("majority", 0.656, 0.578), standing("image", 0.656, 0.75), standing("text", 0.656, 0.6)],
        ["challenger"],
        "The fused model (version 3) lost to its own image baseline: test accuracy 0.656 against 0.750 on the same 64 "
        "rows. It is not champion.",
    ),
    (
        [standing("majority", 0.9, 0.578, better=True), standing("image", 0.9, 0.75, better=True)],
        ["champion"],
        "The fused model (version 3) beats its own image baseline, the best of its rivals: test accuracy 0.900 against "
        "0.750 on the same 64 rows (p = 0.010). It is champion.",
    ),
    (
        [standing("majority", 0.6, 0.578), standing("text", 0.6, 0.5, own=Means(a=0.7, b=0.4, rows=40))],
        ["challenger"],
        "The fused model (version 3) is ahead of the majority answer, but not by enough to be sure: test accuracy "
        "0.600 against 0.578 on the same 64 rows (p = 0.300). It is not champion.",
    ),
    (
        [standing("majority", 0.6, 0.5), standing("text", 0.6, 0.6, own=Means(a=0.7, b=0.75, rows=40))],
        [],
        "The fused model (version 3) is no better than its own text baseline: test accuracy 0.600 against 0.600 on the "
        "same 64 rows, 0.700 against 0.750 on the 40 that text can answer. It is not champion.",
    ),
    ([], ["champion"], "Version 3 is champion; it was not evaluated beside its baselines."),
]


@pytest.mark.parametrize(("standings", "aliases", "expected"), CASES)
def test_the_report_opens_with_what_the_model_is_worth(
    standings: list[Standing], aliases: list[str], expected: str
) -> None:
    assert verdict_sentence({"version": 3, "aliases": aliases}, standings, "accuracy") == expected


def summary(**changes: Any) -> Summary:
    values: dict[str, Any] = {
        "project": "p",
        "dagster_run_id": "d",
        "mlflow_run_id": "m",
        "model": ModelSummary("p", 1, ["challenger"]),
        "dataset": DatasetSummary("f", {}),
        "items": ItemCounts(1, 1, 0, 0),
        "metrics": {"test/n": 94, "test/accuracy": 0.985, "test/majority_accuracy": 0.578},
        "metric": "accuracy",
        "subsets": {"speech": 1.0, "image": None, "text": 0.75, "text+speech": 0.985},
        "subset_rows": {"speech": 50, "image": 0, "text": 94, "text+speech": 94},
        "subset_filled": {"speech": 0.8, "image": 0.578, "text": 0.75, "text+speech": 0.985},
        "standings": [],
        "findings": ["two labels"],
        "warnings": [],
        "seconds": {},
    }
    return Summary(**values | changes)


def said(told: Summary) -> list[str]:
    @click.command()
    def say() -> None:
        say_summary(told)

    return CliRunner().invoke(say).output.splitlines()


def test_bars_are_over_the_same_rows_and_what_is_over_others_says_so() -> None:
    lines = said(summary(warnings=["the model is not shown to listen", "two labels"]))
    assert lines[1] == (
        "Test accuracy by the inputs given, on the same 94 rows; where a row has none of them, the majority answer "
        "counts"
    )
    assert [line.split()[0] for line in lines[2:7]] == ["majority", "image", "text", "speech", "text+speech"]
    assert "0.800" in lines[5] and lines[5].endswith("1.000 on the 50 rows that have it")
    assert lines[5].count("█") == 32 and lines[6].count("█") == 39 and lines[6].endswith("█")
    assert lines[3].endswith("no test row")
    worth = lines.index("Worth a look:")
    assert lines[worth + 1 : worth + 4] == ["  two labels", "  the model is not shown to listen", ""]
    whole = said(summary(subsets={"text": 0.75}, subset_rows={"text": 94}, subset_filled={"text": 0.75}))
    assert whole[1] == "Test accuracy by the inputs given, on the same 94 rows" and "rows that" not in "".join(
        whole[2:]
    )


def test_what_each_input_adds_to_the_majority_answer_is_said() -> None:
    metrics = {"test/n": 94, "test/accuracy": 0.985, "test/majority_accuracy": 0.578}
    added = {"test/contribution_text": 0.079, "test/contribution_speech": 0.328}
    line = "  added to the majority answer's 0.578, averaged over all orders: speech +0.328, text +0.079"
    assert line in said(summary(metrics=metrics | added))
    assert not any("added to" in line for line in said(summary()))
