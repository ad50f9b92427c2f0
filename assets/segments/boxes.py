"""Crops of pictures: each row of a table is a box or a polygon, with what its other columns say of it."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from assets.segments.listed import ListedOptions, ListedSegments
from training.crops import Crop
from training.masks import cropped, read_mask
from training.validation import Names, check

_CORNER_SIZE = ("left", "top", "width", "height")
_CORNERS = ("left", "top", "right", "bottom")
_CENTER_SIZE = ("center_x", "center_y", "width", "height")
_FORMS = (_CORNER_SIZE, _CORNERS, _CENTER_SIZE)
_SAID = "; or ".join(", ".join(form) for form in _FORMS)
_FEW = 2  # pixels: a box within so many, by a table whose unit nobody says, is more likely of shares


class BoxesSegments(ListedSegments):
    """A row says where in a picture the crop lies: by four columns, by one with four numbers, or by polygons or a mask.

    The crop of a polygon or mask is the box around it; what lies outside becomes black, or what `outside` says.
    """

    modality = "image"

    @dataclass(frozen=True, kw_only=True)
    class Options(ListedOptions):
        whole: ClassVar = "picture"
        picture: Names | None = None  # column that names the picture: its key; several are one key
        # Columns with one number each, of one of _FORMS; default: left, top, width and height
        left: str | None = None
        top: str | None = None
        right: str | None = None
        bottom: str | None = None
        width: str | None = None
        height: str | None = None
        center_x: str | None = None
        center_y: str | None = None
        box: str | None = None  # column with all four: [1, 2, 3, 4] or "1 2 3 4"
        order: Names = ()  # what its numbers are, in words as above: [left, top, right, bottom]
        # column with corners: [[x, y], ...], [x, y, ...], a list of such as COCO has them, or "x,y x,y ...", or with
        # COCO's run-length mask
        polygon: str | None = None
        outside: Literal["black", "white", "keep"] = "black"  # what lies in the crop and outside its polygons
        unit: Literal["pixel", "relative"] | None = None  # relative: shares of the picture's width and height
        # Width and height of the picture that the boxes are of, where the one that is here is smaller or larger: two
        # numbers, or two columns of the box's row or the picture's
        of: Names | None = None
        pixels: Literal["upright", "stored"] = "upright"  # boxes are of the picture after EXIF turns it, or before
        margin: float = 0.0  # share of the box that is added at each side, as far as the picture goes

        def __post_init__(self) -> None:
            super().__post_init__()
            numbers = self.numbers
            if sum((bool(numbers), self.box is not None, self.polygon is not None)) > 1:
                raise ValueError("box, polygon and single columns are three ways to say the same: leave two out")
            check(not numbers or set(numbers) in map(set, _FORMS), "columns of the box", sorted(numbers), _SAID)
            in_order = sorted(self.order) in [sorted(form) for form in _FORMS]
            check(in_order or self.box is None, "order", list(self.order), f"what the numbers of `box` are: {_SAID}")
            check(not self.order or self.box is not None, "order", list(self.order), "nothing unless there is a `box`")
            for name in ("box", "polygon"):  # a source reads no lists as attributes
                value = getattr(self, name)
                check(value is None or self.table is not None, name, value, "nothing unless there is a `table`")
            check(self.of is None or len(self.of) == 2, "of", self.of, "width and height, or two columns with them")
            check(self.of is None or self.unit is None, "unit", self.unit, "nothing beside `of`")
            check(0 <= self.margin <= 10, "margin", self.margin, "0 to 10 times the box")

        @property
        def numbers(self) -> dict[str, str]:
            """What a column says -> the column, of those that are named."""
            names = dict.fromkeys(name for form in _FORMS for name in form)
            return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    @property
    def asked(self) -> Sequence[str]:
        one = self.options.box or self.options.polygon
        return (one,) if one is not None else tuple(self._numbers.values())

    @property
    def also(self) -> Sequence[str]:
        return [name for name in self.options.of or () if not name.isdecimal()]

    @property
    def hidden(self) -> Sequence[str]:
        return () if self.options.polygon is None else (self.options.polygon,)

    @property
    def _numbers(self) -> dict[str, str]:
        return self.options.numbers or {name: name for name in _CORNER_SIZE}

    def cut(self, values: Mapping[str, str | None]) -> str:
        options = self.options
        if options.polygon is not None and (mask := _mask(_cell(values, options.polygon), options.polygon)) is not None:
            return self._masked(*mask)
        polygons = [] if options.polygon is None else _polygons(_cell(values, options.polygon), options.polygon)
        box = () if polygons else _edges(self._four(values))
        if options.outside == "keep" and polygons:
            xs, ys = ([v for polygon in polygons for v in polygon[axis::2]] for axis in (0, 1))
            polygons, box = [], (min(xs), min(ys), max(xs), max(ys))
        crop = Crop(
            box,
            polygons,
            of=self._of(values),
            stored=options.pixels == "stored",
            margin=options.margin,
            outside=options.outside if polygons else "black",
        )
        cut = crop.cut
        farthest = max(map(abs, [*box, *(v for polygon in polygons for v in polygon)]))
        if not crop.of and options.unit is None and farthest <= _FEW:
            raise ValueError(
                f"the box lies within {_FEW} pixels: say segments.unit: relative where its numbers are shares of width "
                "and height, else unit: pixel"
            )
        return cut

    def _masked(self, height: int, width: int, runs: Sequence[int]) -> str:
        options = self.options
        box, within = cropped(height, runs)
        shown = {} if options.outside == "keep" else {"mask": within, "outside": options.outside}
        return Crop(box, of=(width, height), stored=options.pixels == "stored", margin=options.margin, **shown).cut

    def _of(self, values: Mapping[str, str | None]) -> Sequence[float]:
        if self.options.unit == "relative":
            return 1, 1
        said = [n if n.isdecimal() else _cell(values, n) for n in self.options.of or ()]
        size = [_number(text, f"segments.of, {name!r}") for text, name in zip(said, self.options.of or (), strict=True)]
        if not all(1 <= length < math.inf for length in size):
            raise ValueError(f"segments.of is {size}: no picture has that width and height")
        return size

    def _four(self, values: Mapping[str, str | None]) -> dict[str, float]:
        options = self.options
        if options.box is None:
            return {n: _number(_cell(values, column), f"column {column!r}") for n, column in self._numbers.items()}
        text = _cell(values, options.box)
        cells = _cells(text)
        if len(cells) != len(options.order):
            raise ValueError(f"column {options.box!r}: {text!r} is no box: expected four numbers")
        return {n: _number(cell, f"column {options.box!r}") for n, cell in zip(options.order, cells, strict=True)}


def _edges(four: Mapping[str, float]) -> tuple[float, float, float, float]:
    """Left, top, right, bottom."""
    if "right" in four:
        return four["left"], four["top"], four["right"], four["bottom"]
    width, height = four["width"], four["height"]
    if "left" in four:
        left, top = four["left"], four["top"]
    else:
        left, top = four["center_x"] - width / 2, four["center_y"] - height / 2
    return left, top, left + width, top + height


def _mask(text: str, column: str) -> tuple[int, int, list[int]] | None:
    """Height, width and runs of a mask; null where it is none. Raises ValueError: it cannot be read."""
    if text.lstrip()[:1] != "{":
        return None
    said = f"column {column!r}"
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{said}: no mask, and no JSON: {error}") from None
    try:
        return read_mask(value)
    except ValueError as error:
        raise ValueError(f"{said}: {error}") from None


def _polygons(text: str, column: str) -> list[list[float]]:
    """The corners of each, x, y, x, y, ..."""
    said = f"column {column!r}"
    try:
        value = json.loads(text) if text.lstrip()[:1] == "[" else _cells(text)
        found = _flat(value, said)
    except json.JSONDecodeError as error:
        raise ValueError(f"{said}: no polygon, and no JSON: {error}") from None
    except RecursionError:
        raise ValueError(f"{said}: lists within lists, too many to be a polygon") from None
    if short := [polygon for polygon in found if len(polygon) < 6 or len(polygon) % 2]:
        raise ValueError(f"{said}: {len(short[0])} numbers are no polygon: expected x and y of at least three corners")
    return found


def _flat(value: Any, said: str) -> list[list[float]]:
    """Each polygon of nested lists: a list of numbers, or of pairs, is one; a list of others is several."""
    if not isinstance(value, list):
        raise ValueError(f"{said}: {value!r} is no list of corners")
    if all(isinstance(item, int | float | str) for item in value):
        return [[_number(item, said) for item in value]]
    if all(isinstance(item, list) and len(item) == 2 and not isinstance(item[0], list) for item in value):
        return [[_number(number, said) for pair in value for number in pair]]
    return [polygon for item in value for polygon in _flat(item, said)]


def _cells(text: str) -> list[str]:
    """The numbers of a list, in whatever brackets."""
    return re.split(r"[\s,;]+", text.strip(" \t[]()"))


def _cell(values: Mapping[str, str | None], column: str) -> str:
    if not (text := values.get(column)):
        raise ValueError(f"column {column!r} says nothing")
    return text


def _number(text: Any, said: str) -> float:
    try:
        return float(text)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{said}: {text!r} is no number") from None
