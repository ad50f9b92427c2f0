"""Parts of a picture as the cuts that name them: `{"box":[10,20,70,100]}`, edges in pixels from its upper left corner.

Shapes: N points, x and y each; H, W rows and columns.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import PIL.ImageDraw

from training.masks import expanded
from training.media import MediaError

_FARTHEST = 10_000_000
_DECIMALS = 6  # of a coordinate: a fiftieth of a pixel, of a share of 20,000
COLORS = {"black": 0, "white": 255}  # of what lies outside polygons


class Place(NamedTuple):
    """Pixels of an upright picture: the first column and row, and those behind the last."""

    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True)
class Crop:
    """A box, or the box around one or several polygons or with a mask, outside of which there is a colour.

    Coordinates are edges, not numbers of pixels: the picture reaches from 0 to its width.
    """

    box: Sequence[float] = ()  # left, top, right, bottom
    polygons: Sequence[Sequence[float]] = ()  # x, y, x, y, ... of each
    mask: Sequence[int] = ()  # runs within the box (`training.masks`), which then counts in the mask's pixels
    of: Sequence[float] = ()  # width and height of a picture in these coordinates; none: those in pixels
    stored: bool = False  # they count in the picture as its file has it, before EXIF turns it
    margin: float = 0.0  # share of width and height that is added at each side
    outside: str = "black"

    @property
    def cut(self) -> str:
        """What names it: the same crop has one name.

        Raises:
            ValueError: it is no area.
        """
        corners_N2 = np.reshape([*self.box, *(v for polygon in self.polygons for v in polygon)], (-1, 2))
        if not (np.abs(corners_N2) <= _FARTHEST).all():  # nor NaN
            raise ValueError(f"a coordinate is not finite, or beyond {_FARTHEST:,}")
        first, last = corners_N2 if self.box else (corners_N2.min(axis=0), corners_N2.max(axis=0))
        (left, top), (right, bottom) = _plain(first.tolist()), _plain(last.tolist())
        if right <= left or bottom <= top:
            raise ValueError(f"the box from ({left}, {top}) to ({right}, {bottom}) has no area")
        said = {name: value for name, value in asdict(self).items() if value and value != getattr(Crop, name)}
        return json.dumps({name: _plain(value) for name, value in said.items()}, separators=(",", ":"))

    @classmethod
    def of_cut(cls, cut: str) -> "Crop":
        """Raises ValueError: the cut names none."""
        try:
            said = json.loads(cut)
        except ValueError:
            said = None
        if not isinstance(said, dict) or not said.keys() <= {field.name for field in fields(cls)}:
            raise ValueError(f"{cut!r} is no part of a picture: materialize the manifest anew")
        return cls(**said)

    def place(self, width: int, height: int, orientation: int) -> tuple[Place, list[str]]:
        """The pixels of an upright picture that it takes, and what should be known of them.

        Edges are rounded. A box that reaches beyond the picture is cut there.

        Args:
            orientation: of EXIF, as `_points` needs it.

        Raises:
            MediaError: there are none.
        """
        self._check_turned(width, height, orientation)
        points = [self._points(part, width, height, orientation) for part in self.polygons or [self.box]]
        first, last = (pick(np.concatenate(points), axis=0) for pick in (np.min, np.max))
        (left, top), (right, bottom) = _rounded(first), _rounded(last)
        said = f"the box from ({left}, {top}) to ({right}, {bottom})"
        whole = f"the picture of {width}x{height} pixels"
        if right <= 0 or bottom <= 0 or left >= width or top >= height:
            raise MediaError("beyond_edge", f"{said} is not within {whole}: correct it, or segments.of and unit")
        is_within = left >= 0 and top >= 0 and right <= width and bottom <= height
        warnings = [] if is_within else [f"{said} reaches beyond {whole}, and was cut there"]
        edge = self.margin * (last - first)
        (left, top), (right, bottom) = _rounded(first - edge), _rounded(last + edge)
        place = Place(max(left, 0), max(top, 0), min(right, width), min(bottom, height))
        if place.left >= place.right or place.top >= place.bottom:
            raise MediaError("no_pixels", f"{said} has no pixel of {whole}: correct it, or segments.of and unit")
        return place, warnings

    def taken(self, picture_HWC: np.ndarray, place: Place, orientation: int) -> np.ndarray:
        """The pixels at its place, without a copy where nothing is coloured. Args: `picture_HWC` is upright."""
        height, width = picture_HWC.shape[:2]
        taken_HWC = picture_HWC[place.top : place.bottom, place.left : place.right]
        if self.mask:
            shown_HW = self._shown(place, width, height, orientation)
            return np.where(shown_HW[..., None], taken_HWC, np.uint8(COLORS[self.outside]))
        if not self.polygons:
            return taken_HWC
        mask = PIL.Image.new("1", (taken_HWC.shape[1], taken_HWC.shape[0]))
        for polygon in self.polygons:  # what its line touches is inside
            points_N2 = np.floor(self._points(polygon, width, height, orientation) - place[:2])
            PIL.ImageDraw.Draw(mask).polygon(np.clip(points_N2, -_FARTHEST, _FARTHEST).ravel().tolist(), fill=1)
        return np.where(np.asarray(mask)[..., None], taken_HWC, np.uint8(COLORS[self.outside]))

    def _shown(self, place: Place, width: int, height: int, orientation: int) -> np.ndarray:
        """What of a place the mask shows, bool (H, W): of each pixel what the mask has at its centre."""
        left, top, right, bottom = map(int, self.box)
        mask_HW = np.pad(expanded(bottom - top, right - left, self.mask), 1)  # nothing is shown beside it
        # Where the corners of the picture lie in the mask: it is scaled, turned or mirrored, but along its sides.
        (x0, y0), (x1, y1) = self._points((0, 0, *self.of), width, height, orientation)
        ys_H, xs_W = np.arange(place.top, place.bottom) + 0.5, np.arange(place.left, place.right) + 0.5
        down_H, across_W = (ys_H - y0) / (y1 - y0), (xs_W - x0) / (x1 - x0)
        columns, rows = self.of
        if self.stored and orientation > 4:  # the mask's columns are the picture's rows
            rows_W, columns_H = _within(rows * across_W, top, bottom), _within(columns * down_H, left, right)
            return mask_HW[rows_W[None, :], columns_H[:, None]]
        rows_H, columns_W = _within(rows * down_H, top, bottom), _within(columns * across_W, left, right)
        return mask_HW[rows_H[:, None], columns_W[None, :]]

    def _points(self, values: Sequence[float], width: int, height: int, orientation: int) -> np.ndarray:
        """Coordinates (N, 2) in pixels of an upright picture of this size.

        Args:
            orientation: EXIF's number for how the stored picture is turned, 1 (not) to 8.
        """
        points_N2 = np.reshape(np.array(values, np.float64), (-1, 2))
        on_its_side = self.stored and orientation > 4
        if self.of:
            points_N2 = points_N2 * ((height, width) if on_its_side else (width, height)) / self.of
        if on_its_side:
            points_N2 = points_N2[:, ::-1].copy()
        if self.stored and orientation in (2, 3, 6, 7):
            points_N2[:, 0] = width - points_N2[:, 0]
        if self.stored and orientation in (3, 4, 7, 8):
            points_N2[:, 1] = height - points_N2[:, 1]
        return points_N2

    def _check_turned(self, width: int, height: int, orientation: int) -> None:
        """Raises MediaError where the coordinates can only be of the stored picture, which lies on its side."""
        if not self.of or self.stored or orientation <= 4:
            return
        across, down = self.of
        on_its_side, upright = (
            abs(across * shape[1] - down * shape[0]) <= max(across, down)  # to a pixel of either length
            for shape in ((height, width), (width, height))
        )
        if on_its_side and not upright:
            raise MediaError(
                "turned",
                f"the box counts in {across:g}x{down:g} pixels and EXIF turns the picture to {width}x{height}: say "
                "segments.pixels: stored where boxes are of the picture before it is turned, else correct segments.of",
            )


def _within(at_N: np.ndarray, first: int, end: int) -> np.ndarray:
    """Numbers of rows or columns as those of a padded mask that begins at `first`."""
    return np.clip(np.floor(at_N) - first + 1, 0, end - first + 1).astype(np.int64)


def _rounded(point: np.ndarray) -> tuple[int, int]:
    x, y = np.floor(point + 0.5).tolist()
    return int(x), int(y)


def _plain(value: Any) -> Any:
    """Numbers in one form, so that no cut has two names."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if not isinstance(value, float):
        return value
    rounded = round(value, _DECIMALS)
    return int(rounded) if rounded.is_integer() else rounded
