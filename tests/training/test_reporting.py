"""Pictures hold what they should, whatever is missing. What they look like is for eyes."""

import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import PIL.Image
import pytest

from training import reporting
from training.metrics import confusion
from training.outputs.text import TextOutput
from training.records import EvaluationRow


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(PIL.Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def holds(png: bytes, color: str) -> bool:
    """Whether at least ten pixels have nearly this colour."""
    wanted = np.array([int(color[n : n + 2], 16) for n in (1, 3, 5)])
    return int((np.abs(pixels(png) - wanted).max(axis=-1) < 12).sum()) >= 10


def row(label: str | None = "7", text: str | None = "What?", image: bool = True, speech: bool = True) -> dict[str, Any]:
    return {
        "label": label,
        "text": None if text is None else {"text": text},
        "image": {"pixels": np.full((1, 28, 28), 90, np.uint8)} if image else None,
        "speech": {"log_mel": np.random.default_rng(0).random((30, 16), np.float32)} if speech else None,
    }


def matrix(pairs: list[tuple[str, str]]) -> tuple[list[str], np.ndarray]:
    return confusion([label for label, _ in pairs], [answer for _, answer in pairs])


def test_wrong_answers_have_a_colour_of_their_own() -> None:
    right = reporting.examples_picture([row(), row(image=False), row(speech=False), row(text=None)], ["7"] * 4)
    assert right != reporting.examples_picture([row(image=False)] * 4, ["7"] * 4, ["text"]), "nothing of others"
    wrong = reporting.examples_picture([row(), row()], ["7", "9"])
    assert holds(right, reporting.RIGHT) and not holds(right, reporting.WRONG)
    assert holds(wrong, reporting.RIGHT) and holds(wrong, reporting.WRONG)


@pytest.mark.parametrize(
    ("rows", "answers"),
    [
        ([], []),
        ([row(label=None, text="$x$ " * 60)], [None]),
        ([row(text="这是什么数字？", image=False, speech=False)], ["七" * 80]),
        ([row()] * 30, [""] * 30),
        ([row() | {"image": {"pixels": np.zeros((3, 28, 28), np.uint8)}}], ["7"]),
    ],
)
def test_examples_can_be_drawn(rows: list[dict[str, Any]], answers: list[str | None]) -> None:
    assert min(pixels(reporting.examples_picture(rows, answers)).shape[:2]) > 200


def test_mistakes_are_seen_in_the_confusion_matrix() -> None:
    perfect = [(str(n % 5), str(n % 5)) for n in range(200)]
    assert not holds(reporting.confusion_picture(*matrix(perfect)), reporting.WRONG)
    half = reporting.confusion_picture(*matrix(perfect + [("0", "1")] * 5000))
    assert holds(half, "#d65f0c") or holds(half, reporting.WRONG)


def test_many_labels_make_no_giant_picture() -> None:
    few = pixels(reporting.confusion_picture(*matrix([(str(n), "x") for n in range(3)])))
    many = pixels(reporting.confusion_picture(*matrix([(f"a long label {n}", "x") for n in range(500)])))
    assert few.shape[0] < many.shape[0] <= 1500


def test_curves_are_drawn_where_there_are_values() -> None:
    history = [{"step": n, "epoch": n / 10, "loss": 1 / n} for n in range(1, 20)]
    assert holds(reporting.learning_picture(history), reporting.RIGHT)
    assert not holds(reporting.learning_picture(history), reporting.GREEN)
    validated = [*history, *({"step": n, "validation_accuracy": n / 20, "validation_loss": 0.5} for n in (10, 19))]
    picture = reporting.learning_picture(validated)
    assert holds(picture, reporting.GREEN) and holds(picture, reporting.ORANGE)
    assert not holds(reporting.learning_picture([]), reporting.RIGHT)


def test_bars_of_subsets_leave_out_what_has_no_rows() -> None:
    def bar(subset: str, labels: list[str], answers: list[str], slice: str | None = None) -> EvaluationRow:
        figures = TextOutput({}).figures(labels, answers)
        return EvaluationRow(inputs="text+image", subset=subset, slice=slice, n=len(labels), metrics=figures)

    full, empty = bar("text+image", ["a", "b"] * 9, ["a", "c"] * 9), bar("image", [], [])
    assert holds(reporting.subsets_picture([full, empty]), reporting.RIGHT)
    assert not holds(reporting.subsets_picture([empty]), reporting.RIGHT)
    assert not holds(reporting.subsets_picture([empty, replace(full, slice="kind=sum")]), reporting.RIGHT)


@pytest.mark.parametrize("draw", [lambda: reporting.learning_picture([{"step": 1, "loss": 0.5}])])
def test_the_same_values_make_the_same_bytes(draw: Callable[[], bytes]) -> None:
    assert draw() == draw()
