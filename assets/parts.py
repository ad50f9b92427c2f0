"""Contents as a model gets them from outside: the bytes of a file, and of a part those of one that holds it alone."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from assets.lake import Lake
from training.catalog import MODALITIES
from training.settings import MediaLimits


class Part(NamedTuple):
    """Which part of its item a content is."""

    cut: str
    size: int  # bytes, decoded
    place: dict[str, float]  # where it lies in its item (`Modality.place`)


def parts_of(lake: Lake, ids: Iterable[str]) -> dict[str, Part]:
    """Of those contents that are no whole items."""
    wanted, found = {"ids": sorted(set(ids))}, dict[str, Part]()
    for name in MODALITIES.names():
        if not (kind := MODALITIES.load(name)).can_be_cut:
            continue
        rows = lake.sql(
            f"SELECT DISTINCT id, cut, {', '.join(kind.place)}, {kind.decoded_bytes} AS size FROM clean_{name} "
            "WHERE id <> parent_id AND id IN (SELECT unnest($ids))",
            wanted,
        )
        for row in rows.to_pylist():
            found[row["id"]] = Part(kind().cut_of(row), row["size"], {column: row[column] for column in kind.place})
    return found


def content_bytes(
    items: Sequence[Mapping[str, Any]],
    wanted: Iterable[tuple[str, str]],
    parts: Mapping[str, Part],
    limits: MediaLimits,
) -> dict[str, bytes | None]:
    """Content id -> its bytes; null where those of its item could not be read.

    Args:
        items: manifest rows with `data` (`assets.contents.attach_data`).
        wanted: id of an item, and of a content of it.
        parts: `parts_of` the contents.
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
