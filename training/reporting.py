"""Pictures of a training for people: PNG bytes, made with matplotlib's object interface (no global state).

Colours are Okabe and Ito's, which differ for colour-blind eyes too.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#888888"


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), dpi=100, layout="constrained")


def confusion_picture(names: Sequence[str], matrix: np.ndarray) -> bytes:
    """Labels against answers; shades are shares of a row, numbers are counts. `matrix` is (labels, labels)."""
    size = max(4.5, 0.42 * len(names) + 1.5)
    figure = _figure(size, size)
    axes = figure.add_subplot()
    share = matrix / np.maximum(1, matrix.sum(axis=1, keepdims=True))
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for row, column in zip(*np.nonzero(matrix), strict=True):
        color = "white" if share[row, column] > 0.5 else "black"
        axes.text(column, row, f"{matrix[row, column]}", ha="center", va="center", fontsize=7, color=color)
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_xlabel("answered")
    axes.set_ylabel("label")
    axes.set_title("Answers on the test set, all inputs given", fontsize=10)
    return _png(figure)


def learning_picture(history: Sequence[Mapping[str, Any]]) -> bytes:
    """Loss of training and validation over the steps, and validation accuracy where it was measured."""
    figure = _figure(7, 3.6)
    axes = figure.add_subplot()
    drawn = [("loss", "training loss", BLUE, "-"), ("eval_loss", "validation loss", ORANGE, "o-")]
    for key, label, color, style in drawn:
        points = [(entry["step"], entry[key]) for entry in history if key in entry]
        if points:
            axes.plot(*zip(*points, strict=True), style, color=color, label=label, markersize=4)
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per answer token)")
    axes.set_yscale("log")
    axes.grid(alpha=0.3)
    points = [(entry["step"], entry["eval_accuracy"]) for entry in history if "eval_accuracy" in entry]
    lines = axes.get_lines()
    if points:
        right = axes.twinx()
        lines = [*lines, *right.plot(*zip(*points, strict=True), "s--", color=GREEN, label="accuracy", markersize=4)]
        right.set_ylim(0, 1.02)
        right.set_ylabel("validation accuracy")
    axes.legend(handles=lines, loc="center right", fontsize=8)
    axes.set_title("Learning curves", fontsize=10)
    return _png(figure)


def subsets_picture(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Accuracy by the inputs given, with its 95 % interval; `rows` as `training.evaluate.measure` gives them."""
    rows = sorted((row for row in rows if row["slice"] is None), key=lambda row: row["accuracy"])
    figure = _figure(7, 0.45 * len(rows) + 1.2)
    axes = figure.add_subplot()
    values = [row["accuracy"] for row in rows]
    errors = [
        [max(0.0, v - row["low"]) for v, row in zip(values, rows, strict=True)],
        [max(0.0, row["high"] - v) for v, row in zip(values, rows, strict=True)],
    ]
    axes.barh([row["subset"] for row in rows], values, xerr=errors, color=BLUE, ecolor=GREY, capsize=3, height=0.6)
    for place, row in enumerate(rows):
        axes.text(min(1.0, row["high"]) + 0.01, place, f"{row['accuracy']:.3f}  (n={row['n']})", va="center", fontsize=8)
    axes.set_xlim(0, 1.25)
    axes.set_xticks(np.arange(0, 1.01, 0.2))
    axes.set_xlabel("test accuracy, exact match (95 % interval)")
    axes.set_title("What the model answers right, by the inputs it is given", fontsize=10)
    return _png(figure)


def examples_picture(rows: Sequence[Mapping[str, Any]], answers: Sequence[str]) -> bytes:
    """Some samples with what was seen, heard and asked, the label and the answer; wrong answers in red.

    Args:
        rows: training rows (text, pixels, log_mel, label), at most 12 are drawn.
    """
    rows, answers = rows[:12], answers[:12]
    columns = 3
    lines = -(-len(rows) // columns)
    figure = _figure(4.2 * columns, 2.1 * lines + 0.4)
    figure.suptitle("Samples of the test set: image, log-mel spectrogram, question, answer", fontsize=10)
    grid = figure.add_gridspec(lines, columns * 2)
    for number, (row, answer) in enumerate(zip(rows, answers, strict=True)):
        line, column = divmod(number, columns)
        left = figure.add_subplot(grid[line, 2 * column])
        right = figure.add_subplot(grid[line, 2 * column + 1])
        if row["pixels"] is not None:
            picture = np.asarray(row["pixels"]).transpose(1, 2, 0)
            left.imshow(picture.squeeze(-1) if picture.shape[-1] == 1 else picture, cmap="gray")
        else:
            left.text(0.5, 0.5, "no image", ha="center", va="center", color=GREY, transform=left.transAxes)
        if row["log_mel"] is not None:
            right.imshow(np.asarray(row["log_mel"]).T, origin="lower", aspect="auto", cmap="magma")
        else:
            right.text(0.5, 0.5, "no speech", ha="center", va="center", color=GREY, transform=right.transAxes)
        ok = answer == row["label"]
        said = f"{answer} ✓" if ok else f"{answer} ✗ (label {row['label']})"
        left.set_title(_wrap(row["text"] or "(no text)"), fontsize=7, loc="left")
        right.set_title(said, fontsize=9, loc="right", color=GREEN if ok else RED)
        for axes in (left, right):
            axes.set_xticks([])
            axes.set_yticks([])
    return _png(figure)


def _wrap(text: str, width: int = 34, lines: int = 3) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text, width, max_lines=lines, placeholder=" …"))
