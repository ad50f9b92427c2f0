"""Contents as a model gets them from outside: the bytes of a file, and of a part those of one that holds it alone."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import pyarrow as pa

from assets.contents import attach_data
from assets.lake import Lake
from assets.sources.base import Source
from training.catalog import MODALITIES
from training.schema import CLEAN
from training.settings import MediaLimits
from training.spans import SECOND, span

_SAMPLE_BYTES = 4  # float32


class Stretch(NamedTuple):
    """Where a part lies in its recording."""

    start: float  # seconds
    seconds: float
    size: int  # bytes of its samples

    @property
    def cut(self) -> str:
        return span(*(round(time * SECOND) for time in (self.start, self.start + self.seconds)))


_CUT = [name for name in MODALITIES.names() if MODALITIES.load(name).can_be_cut and "start" in CLEAN[name].names]


def stretches(lake: Lake, ids: Iterable[str]) -> dict[str, Stretch]:
    """Of those contents that are parts of a recording."""
    wanted, found = {"ids": sorted(set(ids))}, dict[str, Stretch]()
    for modality in _CUT:
        rows = lake.sql(
            f"SELECT DISTINCT id, start, seconds, frames FROM clean_{modality} "
            "WHERE id <> parent_id AND id IN (SELECT unnest($ids))",
            wanted,
        )
        for name, start, seconds, frames in zip(*(column.to_pylist() for column in rows.columns), strict=True):
            found[name] = Stretch(start, seconds, frames * _SAMPLE_BYTES)
    return found


def read_contents(
    items: pa.Table,
    wanted: Iterable[tuple[str, str]],
    parts: Mapping[str, Stretch],
    sources: Mapping[str, Source],
    limits: MediaLimits,
) -> dict[str, bytes | None]:
    """Content id -> its bytes; null where they cannot be read. One recording that was cut is held at a time.

    Args:
        items: manifest rows, those wanted among them.
        wanted: id of an item, and of a content of it.
        parts: `stretches` of the contents.
    """
    asked: dict[str, list[str]] = {}
    for item, content in wanted:
        asked.setdefault(item, []).append(content)
    numbers = {item: n for n, item in enumerate(items["item_id"].to_pylist()) if item in asked}
    cut = [n for item, n in numbers.items() if any(content in parts for content in asked[item])]
    whole = sorted(set(numbers.values()) - set(cut))
    found: dict[str, bytes | None] = {}
    for group in filter(None, (whole, *([n] for n in cut))):
        for item in attach_data(items.take(group), sources).to_pylist():
            for content, data in _contents(item, asked[item["item_id"]], parts, limits):
                found[content] = found.get(content) or data
    return found


def _contents(
    item: Mapping[str, Any], contents: Iterable[str], parts: Mapping[str, Stretch], limits: MediaLimits
) -> Iterator[tuple[str, bytes | None]]:
    """The contents of one item; it is decoded once for all of its parts."""
    modality, decoded = MODALITIES.load(item["modality"])(), None
    for content in contents:
        if content not in parts or item["data"] is None:
            yield content, item["data"]
            continue
        decoded = modality.decode(item["data"], limits) if decoded is None else decoded
        yield content, modality.encode(modality.part(decoded, parts[content].cut))
