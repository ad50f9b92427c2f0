"""Contents as a model gets them from outside: the bytes of a file, and of a part those of one that holds it alone."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import pyarrow as pa

from assets.contents import attach_data
from assets.decoder import decode_each
from assets.lake import Lake
from assets.sources.base import Source
from training.catalog import MODALITIES
from training.media import MediaError
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


def read_contents(
    items: pa.Table,
    wanted: Iterable[tuple[str, str]],
    parts: Mapping[str, Part],
    sources: Mapping[str, Source],
    limits: MediaLimits,
) -> dict[str, bytes | None]:
    """Content id -> its bytes; null where they cannot be read. What was cut is read once for all of its parts, and held
    one at a time.

    Args:
        items: manifest rows, those wanted among them.
        wanted: id of an item, and of a content of it.
        parts: `parts_of` the contents.
    """
    names, hashes = items["item_id"].to_pylist(), items["sha256"].to_pylist()
    at, asked, places = {name: n for n, name in enumerate(names)}, dict[str, set[str]](), dict[str, set[int]]()
    for item, content in wanted:
        sha256 = hashes[at[item]]
        asked.setdefault(sha256, set()).add(content)
        places.setdefault(sha256, set()).add(at[item])
    cut = {sha256 for sha256, contents in asked.items() if not contents.isdisjoint(parts)}
    groups = [[n for sha256, numbers in places.items() if sha256 not in cut for n in sorted(numbers)]]
    groups += ([n] for sha256 in cut for n in sorted(places[sha256]))
    found: dict[str, bytes | None] = {}
    for group in groups:
        if not any(found.get(content) is None for n in group for content in asked[hashes[n]]):
            continue
        for item in attach_data(items.take(group), sources).to_pylist():
            for content, data in _contents(item, asked[item["sha256"]], parts, limits):
                found[content] = found.get(content) or data
    return found


def _contents(
    item: Mapping[str, Any], contents: Iterable[str], parts: Mapping[str, Part], limits: MediaLimits
) -> Iterator[tuple[str, bytes | None]]:
    """The contents of one item; it is decoded once for all of its parts."""
    modality, decoded = MODALITIES.load(item["modality"])(), None
    for content in contents:
        if content not in parts or item["data"] is None:
            yield content, item["data"]
            continue
        if decoded is None:
            (decoded,) = decode_each(modality, [(item["data"], None)], limits)
        if isinstance(decoded, MediaError):
            yield content, None
        elif isinstance(decoded, Exception):
            raise decoded
        else:
            yield content, modality.encode(modality.part(decoded, parts[content].cut))
