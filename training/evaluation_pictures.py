"""Pictures of an evaluation for people, beside those of a training (`training.reporting`)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap

from training.attribution_map import AttributionMap
from training.evaluate import SLICE_ROWS
from training.records import Calibration, Fairness, Figure, NoiseCurve
from training.reporting import GREY, ORANGE, RIGHT, WRONG, new_figure, plain_axes, png_of, short

_PANELS = 12
_WORDS = 30  # of a text, those that count most
_COLUMNS = 4


def calibration_picture(lines: Sequence[Calibration]) -> bytes:
    """How often answers are right (with 95 % intervals) by how sure they are said to be, as panels side by side: of all
    rows, then of the slices whose error is largest. Bars below say how many rows each point is of."""
    whole = [line for line in lines if line.slice is None]
    parts = [line for line in lines if line.slice is not None and line.rows >= SLICE_ROWS]
    parts = sorted(parts, key=lambda line: -(line.error.value or 0))
    shown = [*whole, *parts][:_PANELS]
    columns = min(_COLUMNS, max(1, len(shown)))
    figure = new_figure(2.5 * max(2, columns), 2.7 * -(-len(shown) // columns) + 0.8)
    figure.suptitle("How often answers are right, by how sure they are said to be", fontsize=10)
    panels = figure.subplots(-(-len(shown) // columns) or 1, columns, squeeze=False, sharex=True, sharey=True).ravel()
    for axes, line in zip(panels, shown, strict=False):
        _calibration_panel(axes, line)
    for axes in panels[len(shown) :]:
        axes.set_visible(False)
    figure.supxlabel("probability that the model gives its answer (grey bars: how the rows are spread)", fontsize=8)
    figure.supylabel("share that is right", fontsize=8)
    return png_of(figure)


def _calibration_panel(axes: Axes, line: Calibration) -> None:
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1)
    claimed = np.array([one.claimed for one in line.bins])
    right, low, high = (np.array([getattr(one.right, end) for one in line.bins]) for end in ("value", "low", "high"))
    share = np.array([one.rows for one in line.bins]) / line.rows
    axes.bar(claimed, 0.3 * share, 0.05, color="#d5d5d5")
    axes.errorbar(claimed, right, [right - low, high - right], fmt="o-", color=RIGHT, markersize=4, linewidth=1,
                  elinewidth=0.8, ecolor="#7ab3d6")  # fmt: skip
    part, _, _ = line.metric.rpartition(".")
    name = " · ".join(filter(None, (part, short(line.slice or "all rows", 30))))
    error = "not known" if line.error.value is None else f"{line.error.value:.3f}"
    axes.set_title(f"{name}\nn = {line.rows:,}, error (ECE) {error}", fontsize=8)
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 1.02)
    axes.tick_params(labelsize=7)
    plain_axes(axes)


def fairness_picture(fair: Sequence[Fairness]) -> bytes:
    """What a model is worth to each group of each column, and how much more than to all others, with 95 % intervals;
    grey: groups of too few rows to be compared."""
    heights = [0.32 * max(1, len(one.groups)) + 0.5 for one in fair]
    figure = new_figure(9, sum(heights) + 0.4 * len(fair) + 0.6)
    sizes: dict[str, Any] = {"height_ratios": heights, "width_ratios": [3, 2], "sharex": "col", "squeeze": False}
    for (left, right), one in zip(figure.subplots(len(fair), 2, **sizes), fair, strict=True):
        _groups_panel(left, right, one)
        right.tick_params(labelbottom=True)
        left.tick_params(labelbottom=True)
    metric = fair[0].metric.replace("_", " ")
    figure.suptitle(f"What the model is worth to groups: {metric}, with 95 % intervals", fontsize=10)
    return png_of(figure)


def _groups_panel(left: Axes, right: Axes, fair: Fairness) -> None:
    groups = fair.groups[::-1]
    for place, group in enumerate(groups):
        color = RIGHT if group.counted else GREY
        _interval(left, place, group.figure, color)
        if group.rest.value is not None:
            sure = (group.rest.low or 0) > 0 or (group.rest.high or 0) < 0
            _interval(right, place, group.rest, ORANGE if sure else color)
    left.set_yticks(range(len(groups)), [f"{short(one.group, 24)} (n = {one.rows:,})" for one in groups], fontsize=8)
    right.set_yticks([])
    right.axvline(0, color=GREY, linestyle=":", linewidth=1)
    left.set_title(f"by {short(fair.column, 30)}", fontsize=9, loc="left")
    right.set_title("more than to all others (orange: beyond chance)", fontsize=8, loc="left")
    for axes in (left, right):
        axes.set_ylim(-0.6, max(1, len(groups)) - 0.4)
        axes.tick_params(labelsize=8)
        plain_axes(axes)
    if not groups:
        left.text(0.02, 0.5, fair.note or "", fontsize=8, color=GREY, transform=left.transAxes, va="center", wrap=True)


def _interval(axes: Axes, place: float, figure: Figure, color: str) -> None:
    if figure.value is None:
        return
    low, high = (figure.value if end is None else end for end in (figure.low, figure.high))
    axes.errorbar(figure.value, place, xerr=[[figure.value - low], [high - figure.value]], fmt="o", color=color,
                  markersize=5, capsize=2, linewidth=1.2)  # fmt: skip


def noise_picture(curves: Sequence[NoiseCurve]) -> bytes:
    """What the model is worth by how noisy one modality is, with 95 % intervals, from no noise on the left."""
    figure = new_figure(3.2 * max(2, len(curves)), 3.2)
    metric = curves[0].metric.replace("_", " ")
    figure.suptitle(f"Test {metric} as one modality gets noisier, the others as they are", fontsize=10)
    for axes, curve in zip(figure.subplots(1, len(curves), squeeze=False, sharey=True)[0], curves, strict=True):
        places = range(len(curve.figures))
        known = [(n, one) for n, one in zip(places, curve.figures, strict=True) if one.value is not None]
        at, values = [n for n, _ in known], np.array([one.value for _, one in known], float)
        low, high = (np.array([getattr(one, end) for _, one in known], float) for end in ("low", "high"))
        axes.fill_between(at, low, high, color=RIGHT, alpha=0.15, linewidth=0)
        axes.plot(at, values, "o-", color=RIGHT, markersize=4)
        axes.set_xticks(list(places), ["none", *(f"{level:g}" for level in curve.levels)], fontsize=8)
        axes.set_xlabel(curve.noise, fontsize=8)
        area = "" if curve.area is None else f", area {curve.area:.3f}"
        axes.set_title(f"{curve.modality} (n = {curve.rows:,}{area})", fontsize=9)
        axes.tick_params(axis="y", labelsize=8)
        axes.grid(alpha=0.3)
        plain_axes(axes)
    return png_of(figure)


def attribution_picture(maps: Sequence[AttributionMap], title: str) -> bytes:
    """What an answer hangs on: each content beside its map. Blue speaks for the answer, vermilion against it; colours
    are of the same strength within one map only."""
    words = [one for one in maps if one.pixels is None]
    seen = [one for one in maps if one.pixels is not None]
    lines = max((min(_WORDS, len(one.pieces)) for one in words), default=0)
    height = 3.1 * len(seen) + (0.24 * lines + 1.0) * len(words) + 0.7
    figure = new_figure(7.5, height)
    figure.suptitle(f"Answer: {short(title, 70)}\nblue speaks for it, vermilion against it", fontsize=10)
    parts = figure.subfigures(len(maps), 1, squeeze=False)[:, 0] if len(maps) > 1 else [figure]
    for part, one in zip(parts, [*seen, *words], strict=True):
        (_words_map if one.pixels is None else _pixels_map)(part, one)
    return png_of(figure)


def _pixels_map(part: Any, one: AttributionMap) -> None:
    assert one.pixels is not None
    plain, over = part.subplots(1, 2)
    aspect = "equal" if one.pixels.ndim == 3 else "auto"
    plain.imshow(one.pixels, cmap="cividis", aspect=aspect)
    plain.set_title(one.modality, fontsize=9)
    grey = one.pixels.mean(-1) if one.pixels.ndim == 3 else one.pixels
    over.imshow(grey, cmap="gray", aspect=aspect, alpha=0.35)
    most = float(np.quantile(np.abs(one.values), 0.995)) or 1.0
    extent = (-0.5, grey.shape[1] - 0.5, grey.shape[0] - 0.5, -0.5)
    shade = LinearSegmentedColormap.from_list("", [WRONG, "white", RIGHT])
    strength = np.clip(np.abs(one.values) / most, 0, 1)
    over.imshow(one.values, cmap=shade, vmin=-most, vmax=most, alpha=0.85 * strength, extent=extent, aspect=aspect)
    over.set_title(f"what the answer owes to it ({one.how})", fontsize=9)
    for axes in (plain, over):
        axes.set_xticks([])
        axes.set_yticks([])


def _words_map(part: Any, one: AttributionMap) -> None:
    axes = part.subplots()
    counted = np.sort(np.argsort(-np.abs(one.values), kind="stable")[:_WORDS])[::-1]
    values = one.values[counted]
    axes.barh(range(len(counted)), values, color=[RIGHT if value > 0 else WRONG for value in values], height=0.7)
    axes.set_yticks(range(len(counted)), [short(one.pieces[n], 24) for n in counted], fontsize=8)
    axes.axvline(0, color=GREY, linewidth=0.8)
    axes.set_title(f"{one.modality}: nats that the answer owes to each word ({one.how})", fontsize=9)
    axes.tick_params(axis="x", labelsize=8)
    plain_axes(axes)
