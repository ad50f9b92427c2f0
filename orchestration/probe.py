"""Decodes some items of each modality, to see before a run what can be read."""

import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from assets import featurizing
from assets.contents import attach_data, portions
from assets.lake import open_duckdb
from assets.processing import CLEAN_STEP, PARTS
from assets.settings import Project
from training.schema import QUARANTINE

_EACH = 3  # items of each suffix that are decoded at least
_SUFFIX = re.compile(r"\.[a-z][a-z0-9]{0,9}")  # of files; the names of rows end in anything


@dataclass(frozen=True)
class Decoded:
    """Of `items`, those that were decoded, spread over all of them."""

    items: int
    decoded: int
    unreadable: int
    example: str | None  # why one of them cannot be read


def decode_some(project: Project, manifest: pa.Table, most: int) -> tuple[dict[str, dict[str, Decoded]], pa.Table]:
    """Source -> how names end -> what became of the items that were decoded; and rows of `quarantine` of the bad ones.

    Args:
        manifest: rows of training.schema.MANIFEST.
        most: of each modality; somewhat more, so that there are a few of each suffix.
    """
    tried: dict[str, dict[str, Decoded]] = {}
    refusals = [QUARANTINE.empty_table()]
    for modality in project.modalities:
        items = manifest.filter(pc.equal(manifest["modality"], modality)).combine_chunks()
        groups = _by_suffix(items)
        chosen = {group: _spread(rows, max(_EACH, most * len(rows) // len(items))) for group, rows in groups.items()}
        numbers = sorted(number for some in chosen.values() for number in some)
        bad = _unreadable(project, modality, items.take(pa.array(numbers, pa.int64())), items)
        why = dict(zip(bad["item_id"].to_pylist(), bad["message"].to_pylist(), strict=True))
        for (source, suffix), rows in groups.items():
            ids = items["item_id"].take(pa.array(chosen[source, suffix], pa.int64())).to_pylist()
            messages = [why[item] for item in ids if item in why]
            found = Decoded(len(rows), len(ids), len(messages), messages[0] if messages else None)
            tried.setdefault(source, {})[suffix] = found
        refusals.append(bad)
    return tried, pa.concat_tables(refusals)


def _by_suffix(items: pa.Table) -> dict[tuple[str, str], list[int]]:
    """(source, how the name of the file ends, in lower case) -> numbers of the items; rows of a table have none."""
    names = pc.coalesce(items["member"], items["uri"]).to_pylist()
    is_row = pc.and_(pc.is_valid(items["text"]), pc.is_valid(items["row"])).to_pylist()
    groups: dict[tuple[str, str], list[int]] = {}
    for number, (source, name, row) in enumerate(zip(items["source"].to_pylist(), names, is_row, strict=True)):
        suffix = posixpath.splitext(name)[1].lower()
        groups.setdefault((source, "" if row or not _SUFFIX.fullmatch(suffix) else suffix), []).append(number)
    return groups


def _spread(numbers: Sequence[int], most: int) -> list[int]:
    """As many of the numbers, at even distances; the same in every run."""
    most = min(most, len(numbers))
    return [numbers[i * len(numbers) // most] for i in range(most)]


def _unreadable(project: Project, modality: str, items: pa.Table, listed: pa.Table) -> pa.Table:
    """Rows of `quarantine` of the items that cannot be read. Args: `listed`: these and all others."""
    refusals, sources, step = (
        [QUARANTINE.empty_table()],
        project.make_sources(),
        featurizing.make_step(project, modality),
    )
    rows = items.to_pylist()
    parts: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        names = [field.name for field in PARTS.value_type if field.name != "need"]
        parts.setdefault(row["sha256"], []).append({name: row[name] for name in names} | {"need": [CLEAN_STEP]})
    firsts = {row["sha256"]: n for n, row in reversed(list(enumerate(rows)))}  # each is decoded once
    items = items.take(pa.array(sorted(firsts.values()), pa.int64()))
    asked_of = [parts[sha256] for sha256 in items["sha256"].to_pylist()]
    items = items.append_column("parts", pa.array(asked_of, PARTS))
    if step.segments:
        with open_duckdb() as connection:
            connection.register("manifest", listed)
            connection.register("asked", items)
            told = f"SELECT * FROM asked LEFT JOIN ({featurizing.WORDS_OF_PARTS}) USING (sha256)"
            items = connection.sql(told, params={"modality": modality}).to_arrow_table()
    for part in portions(items, items["size"].to_pylist()):
        refusals.append(step(attach_data(part, sources)).quarantine)
    return pa.concat_tables(refusals)
