"""Pictures of an evaluation for people, beside those of a training (`training.reporting`)."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from training.records import Calibration
from training.reporting import GREY, RIGHT, new_figure, plain_axes, png_of, short

_PANELS = 12
_COLUMNS = 4
_TELLING_ROWS = 20  # a slice of fewer is not drawn


def calibration_picture(lines: Sequence[Calibration]) -> bytes:
    """How often answers are right (with 95 % intervals) by how sure they are said to be, as panels side by side: of all
    rows, then of the slices whose error is largest. Bars below say how many rows each point is of."""
    whole = [line for line in lines if line.slice is None]
    parts = [line for line in lines if line.slice is not None and line.rows >= _TELLING_ROWS]
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
