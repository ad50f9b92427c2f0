"""Pictures of a training for people: PNG bytes, made with matplotlib's object interface (no global state).

Colours are Okabe and Ito's, which differ for colour-blind eyes too: blue is right, vermilion is wrong.
"""

import functools
import io
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, to_rgba
from matplotlib.figure import Figure, SubFigure
from matplotlib.text import Text
from matplotlib.ticker import LogFormatter, MaxNLocator

from training import catalog
from training.processor import contents
from training.records import EvaluationRow, TuningReport
from training.records import Figure as Measured
from training.schema import MODALITIES

RIGHT, WRONG, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#E69F00", "#009E73", "#767676"
_HAN_FONTS = ("Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei")
_EXAMPLES = 12


def new_figure(width: float, height: float) -> Figure:
    """Inches."""
    return Figure(figsize=(width, height), dpi=120, layout="constrained")


def png_of(figure: Figure) -> bytes:
    for text in figure.findobj(Text):
        text.set_fontfamily(_fonts())
        text.set_parse_math(False)  # questions may hold dollar signs
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # one for each character that no font has; it is drawn as a box
        FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()


@functools.cache
def _fonts() -> list[str]:
    """matplotlib's own, and one for Chinese, Japanese and Korean where the machine has it."""
    from matplotlib.font_manager import fontManager

    return ["DejaVu Sans", *(name for name in _HAN_FONTS if name in fontManager.get_font_names())][:2]


def plain_axes(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)


def short(text: str, width: int = 16) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def confusion_picture(names: Sequence[str], matrix: np.ndarray) -> bytes:
    """Labels against answers, as `training.metrics.confusion` gives them; the last name stands for all others.

    Numbers are counts; the shade is the share of the label's rows, by its root, so that a few mistakes are seen.
    """
    count = len(names)
    size = max(4.5, 0.4 * count + 1.6)
    figure = new_figure(size, size)
    axes = figure.add_subplot()
    share = np.sqrt(matrix / np.maximum(1, matrix.sum(axis=1, keepdims=True)))
    blues, reds = (LinearSegmentedColormap.from_list("", ["white", color]) for color in (RIGHT, WRONG))
    colors = reds(share)
    for n in range(count - 1):
        colors[n, n] = blues(share[n, n])
    # Rows of other labels that were answered with other answers may be right or wrong.
    colors[-1, -1] = to_rgba(GREY, alpha=share[-1, -1])
    axes.imshow(colors)
    for row, column in zip(*np.nonzero(matrix), strict=True):
        color = "white" if share[row, column] > 0.6 else "black"
        axes.text(column, row, f"{matrix[row, column]}", ha="center", va="center", fontsize=7, color=color)
    ticks = [short(name) for name in names[:-1]] + [f"({names[-1]})"]
    axes.set_xticks(range(count), ticks, rotation=60, ha="right", rotation_mode="anchor", fontsize=8)
    axes.set_yticks(range(count), ticks, fontsize=8)
    axes.set_xticks(np.arange(-0.5, count), minor=True)
    axes.set_yticks(np.arange(-0.5, count), minor=True)
    axes.grid(which="minor", color="#dddddd", linewidth=0.5)
    axes.tick_params(which="both", length=0)
    axes.set_xlabel("answer (number of rows)")
    axes.set_ylabel("label")
    axes.set_title(f"{matrix.sum():,} answers to test rows, all inputs given", fontsize=10)
    return png_of(figure)


class _PlainFormatter(LogFormatter):
    """0.6 and not 6e-01; powers of ten only where a loss is beyond what is read at a glance."""

    def _num_to_string(self, x: float, vmin: float, vmax: float) -> str:
        return f"{x:g}"


def learning_picture(history: Sequence[Mapping[str, Any]], metric: str = "accuracy") -> bytes:
    """Training and validation loss over the steps, and the validation metric, wherever an entry has them."""
    figure = new_figure(7, 3.6)
    axes = figure.add_subplot()
    lines = _curve(axes, history, "loss", "training loss", RIGHT, "-")
    lines += _curve(axes, history, "validation_loss", "validation loss", ORANGE, "o-")
    if any(entry.get(name, 0) > 0 for entry in history for name in ("loss", "validation_loss")):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(_PlainFormatter())
        axes.yaxis.set_minor_formatter(_PlainFormatter(minor_thresholds=(1, 0.4)))
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss (nats)")
    axes.grid(alpha=0.3)
    axes.spines["top"].set_visible(False)
    right, name = axes.twinx(), metric.replace("_", " ")
    right.spines["top"].set_visible(False)
    if metric == "accuracy":
        right.set_ylim(0, 1.02)
    right.set_ylabel("accuracy (share of rows)" if metric == "accuracy" else name)
    lines += _curve(right, history, f"validation_{metric}", f"validation {name}", GREEN, "s--")
    if lines:
        figure.legend(handles=lines, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    axes.set_title("Learning curves", fontsize=10)
    return png_of(figure)


def _curve(axes: Axes, history: Sequence[Mapping[str, Any]], key: str, label: str, color: str, style: str) -> list[Any]:
    points = [(entry["step"], entry[key]) for entry in history if key in entry]
    if not points:
        return []
    steps, values = zip(*points, strict=True)
    return axes.plot(steps, values, style, color=color, label=label, markersize=4, linewidth=1.5)


def subsets_picture(rows: Sequence[EvaluationRow], majority: float | None = None) -> bytes:
    """The output's first metric by the inputs given, with its 95 % interval, all on the same rows: where none of the
    inputs is there, the majority answer counts. Slices are left out.

    Args:
        majority: the figure of the majority answer alone, drawn as a line.
    """
    rows = [row for row in rows if row.slice is None]
    bars = sorted(((_comparable(row), row) for row in rows), key=lambda bar: bar[0].value or 0)
    name = next(iter(rows[0].metrics)) if rows else "accuracy"
    # Shares fill the axis from 0 to 1; of other figures, the highest is as wide as 1 would be.
    widest = 1.0 if name == "accuracy" else max((bar.high or 0 for bar, _ in bars), default=0) or 1.0
    figure = new_figure(7, 0.42 * len(rows) + 1.5)
    axes = figure.add_subplot()
    everyone = max((row.n for row in rows), default=0)
    for line, (bar, row) in enumerate(bars):
        if bar.value is None or bar.low is None or bar.high is None or row.n == 0:
            axes.text(0.01 * widest, line, "no test row", va="center", fontsize=8, color=GREY)
            continue
        error = [[max(0.0, bar.value - bar.low)], [max(0.0, bar.high - bar.value)]]
        color = RIGHT if row.subset == row.inputs else "#56B4E9"
        axes.barh(line, bar.value, xerr=error, color=color, ecolor="#333333", capsize=3, height=0.6)
        own = f"\n{row.main.value:.3f} on the {row.n:,} that have it" if row.n < everyone and row.main.value else ""
        axes.text(bar.high + 0.015 * widest, line, f"{bar.value:.3f}{own}", va="center", fontsize=8)
    if majority is not None:
        axes.axvline(majority, color=GREY, linestyle=":", label=f"majority answer: {majority:.3f}")
        figure.legend(loc="outside lower right", fontsize=8, frameon=False)
    axes.set_ylim(-0.6, max(1, len(rows)) - 0.4)
    axes.set_yticks(range(len(rows)), [row.subset.replace("+", " + ") for _, row in bars])
    axes.set_xlim(0, 1.3 * widest)
    axes.set_xticks(np.linspace(0, widest, 6))
    what = "share of rows answered exactly" if name == "accuracy" else "mean over the rows"
    axes.set_xlabel(f"test {name.replace('_', ' ')}: {what}, with its 95 % interval")
    axes.set_title(f"What the model makes of {everyone:,} test rows, by the inputs it is given", fontsize=10)
    plain_axes(axes)
    return png_of(figure)


def differences_picture(streams: Mapping[str, Sequence[Sequence[float]]], base: str) -> bytes:
    """How much later than its partner the items of each stream begin, as histograms one below the other.

    Args:
        streams: name -> bars as (from, width, pairs), in seconds.
        base: what the partners are of.
    """
    figure = new_figure(7, 1.5 * len(streams) + 0.9)
    figure.suptitle(f"Differences in time to {base}", fontsize=10)
    for axes, (name, bars) in zip(figure.subplots(len(streams), squeeze=False)[:, 0], streams.items(), strict=True):
        farthest = max(max(abs(start), abs(start + width)) for start, width, _ in bars)
        unit, scale = ("s", 1.0) if farthest >= 1 else ("ms", 1e3) if farthest >= 1e-3 else ("µs", 1e6)
        starts, widths, counts = (np.array(column, float) for column in zip(*bars, strict=True))
        axes.bar(starts * scale, counts, widths * scale, align="edge", color=RIGHT)
        axes.axvline(0, color=GREY, linestyle=":")
        axes.set_ylabel(f"{short(name)}\npairs", fontsize=8)
        axes.set_xlabel(f"later by ({unit})", fontsize=8)
        plain_axes(axes)
    return png_of(figure)


def tuning_picture(report: TuningReport) -> bytes:
    """The trials of a search for settings one after the other, and how much each setting matters."""
    figure = new_figure(9, max(3.2, 0.4 * len(report.importance) + 1.2))
    trials, bars = figure.subplots(1, 2)
    colors = {"complete": RIGHT, "pruned": GREY}
    for state, color in colors.items():
        points = [(t.number, t.value) for t in report.trials if t.state == state and t.value is not None]
        if points:
            trials.plot(*zip(*points, strict=True), "o", color=color, markersize=4, label=state)
    trials.plot(report.best, report.best_trial.value, "o", color=WRONG, markersize=7, fillstyle="none", label="best")
    trials.xaxis.set_major_locator(MaxNLocator(integer=True))
    trials.set_xlabel("trial")
    trials.set_ylabel(f"validation {report.metric.replace('_', ' ')}")
    trials.legend(fontsize=8, frameon=False)
    names = list(report.importance)[::-1]
    for line, name in enumerate(names):
        bars.barh(line, report.importance[name], color=RIGHT, height=0.6)
        bars.text(report.importance[name] + 0.01, line, f"{report.importance[name]:.2f}", va="center", fontsize=8)
    bars.set_yticks(range(len(names)), names, fontsize=8)
    bars.set_xlim(0, 1.1)
    bars.set_xlabel("share in what the metric comes to" if names else "not known: trials too few, or all alike")
    for axes, title in ((trials, "Trials"), (bars, "Importance of the settings")):
        axes.set_title(title, fontsize=10)
        plain_axes(axes)
    return png_of(figure)


def _comparable(row: EvaluationRow) -> Measured:
    """On all rows where that is known, so that bars are of the same rows."""
    return row.main if row.filled.value is None else row.filled


def examples_picture(
    rows: Sequence[Mapping[str, Any]], answers: Sequence[str | None], modalities: Sequence[str] = MODALITIES
) -> bytes:
    """What was seen, heard and asked, and the answer: blue where it is the label, else vermilion with the label.

    Args:
        rows: training rows (`training.data`); the first 12 are drawn.
        answers: one for each row.
        modalities: those that the model reads; nothing is said of the others.
    """
    pairs = list(zip(rows, answers, strict=True))[:_EXAMPLES]
    columns = 3
    lines = max(1, -(-len(pairs) // columns))
    figure = new_figure(4 * columns, 2.3 * lines + 0.5)
    shown = [kind.picture_title or name for name, kind in _kinds(modalities).items()]
    figure.suptitle(f"Test samples: {', '.join(shown)}; label and answer", fontsize=11)
    cells = figure.subfigures(lines, columns, squeeze=False, wspace=0.04, hspace=0.02).ravel()
    for cell, (row, answer) in zip(cells, pairs, strict=False):
        _example(cell, row, answer, modalities)
    return png_of(figure)


def _kinds(modalities: Sequence[str]) -> dict[str, Any]:
    """The modalities; those that have pictures first."""
    kinds = {m: catalog.MODALITIES.load(m)() for m in modalities}
    return dict(sorted(kinds.items(), key=lambda item: item[1].is_text))


def _example(cell: SubFigure, row: Mapping[str, Any], answer: str | None, modalities: Sequence[str]) -> None:
    kinds = _kinds(modalities)
    given = {m: contents(dict(row), m) or [{"text": f"(no {m})"}] for m, kind in kinds.items() if kind.is_text}
    texts = [" / ".join(columns.get("text", "") for columns in listed) for listed in given.values()]
    if texts:
        lines = textwrap.wrap(" · ".join(texts), 66, max_lines=2, placeholder=" …")
        cell.suptitle("\n".join(lines), fontsize=8, x=0.02, ha="left")
    pictured = {m: kind for m, kind in kinds.items() if kind.picture is not None}
    for axes, (m, kind) in zip(np.ravel(cell.subplots(1, max(1, len(pictured)))), pictured.items(), strict=False):
        _picture(axes, m, kind, row[m])
        if more := row.get(f"{m}_more"):
            axes.set_title(f"+{len(more)} more", fontsize=6, color=GREY, pad=2)
    label = row["label"] or "none"
    right = answer is not None and row["label"] is not None and answer.strip() == label.strip()
    words = "no answer" if answer is None else short(answer or "(nothing)", 30)
    verdict = f"✓ {words}" if right else f"✗ {words}   (label: {short(label, 30)})"
    cell.supxlabel(verdict, fontsize=10, color=RIGHT if right else WRONG, x=0.02, ha="left")


def _picture(axes: Axes, modality: str, kind: Any, columns: Mapping[str, Any] | None) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_color("#cccccc")
    tensor = None if columns is None else columns.get(kind.picture)
    if tensor is None:
        words = f"no {modality}" if columns is None else f"{modality}: no picture\nof these features"
        axes.text(0.5, 0.5, words, ha="center", va="center", color=GREY, transform=axes.transAxes)
        return
    pixels = kind.draw(np.asarray(tensor))
    axes.imshow(pixels, cmap="cividis", aspect="equal" if pixels.ndim == 3 else "auto")
    horizontal, vertical = kind.axes(tensor)
    axes.set_xlabel(horizontal, fontsize=6, color=GREY, labelpad=2)
    axes.set_ylabel(vertical, fontsize=6, color=GREY, labelpad=2)
