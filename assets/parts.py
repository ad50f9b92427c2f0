"""Contents as a model gets them from outside: the bytes of a file, and of a part those of one that holds it alone."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from assets.lake import Lake
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


def content_bytes(
    items: Sequence[Mapping[str, Any]],
    wanted: Iterable[tuple[str, str]],
    parts: Mapping[str, Stretch],
    limits: MediaLimits,
) -> dict[str, bytes | None]:
    """Content id -> its bytes; null where those of its item could not be read.

    Args:
        items: manifest rows with `data` (`assets.contents.attach_data`).
        wanted: id of an item, and of a content of it.
        parts: `stretches` of the contents.
    """
    by_id, found = {item["item_id"]: item for item in items}, dict[str, bytes | None]()
    for item_id, pairs in itertools.groupby(sorted(set(wanted)), key=lambda pair: pair[0]):
        item, ids = by_id[item_id], [content for _, content in pairs]
        found |= {content: item["data"] for content in ids if found.get(content) is None}
        if item["data"] is None or not any(content in parts for content in ids):
            continue
        modality = MODALITIES.load(item["modality"])()
        whole = modality.decode(item["data"], limits)  # once for all of them
        for content in ids:
            if content in parts:
                found[content] = modality.encode(modality.part(whole, parts[content].cut))
    return found
