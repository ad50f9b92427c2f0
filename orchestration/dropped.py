"""What did not become part of a sample: how much of each source, why, and some items as a person sees them."""

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from assets.contents import attach_data
from assets.featurizing import make_processor
from assets.lake import Lake, open_duckdb
from assets.settings import Project
from assets.sources.base import Source
from training.media import MediaError
from training.processor import Processor

_GROUPS, _SHOWN = 40, 12  # kinds of loss that are listed, and of which items are shown
_EXAMPLES = 4
_WORDS = {
    "manifest": "never listed",
    "clean": "cannot be read",
    "featurize": "no features can be made of it",
    "filter": "refused by a filter",
    "align": "not matched",
}


@dataclass(frozen=True)
class Example:
    """An item that was dropped."""

    message: str  # where it comes from, and why
    png: str | None = None  # what it looks like, as base64
    words: str | None = None  # or says


@dataclass(frozen=True)
class Loss:
    """Items that one source has lost for one reason."""

    stage: str
    outcome: str
    reason: str
    source: str | None  # None: a row of the link table
    modality: str | None
    n: int
    examples: list[Example] = field(default_factory=list)

    @property
    def stage_words(self) -> str:
        return _WORDS.get(self.stage, self.stage)


def dropped(lake: Lake, project: Project, refused: pa.Table) -> list[Loss]:
    """The losses, the largest first; what is shown is read where it lies, as far as the manifest lists it.

    Args:
        refused: rows of quarantine (`assets.pipeline.quarantined`).
    """
    with open_duckdb() as connection:
        connection.register("refused", refused)
        groups = (
            connection.sql(
                f"""
            SELECT stage, outcome, reason, source, modality, count(*) AS n,
              list({{'item_id': item_id, 'message': message}} ORDER BY hash(item_id), message)[:{_EXAMPLES}] AS examples
            FROM refused GROUP BY ALL ORDER BY n DESC, stage, reason, source LIMIT {_GROUPS}
            """
            )
            .to_arrow_table()
            .to_pylist()
        )
    shown = [one["item_id"] for group in groups[:_SHOWN] for one in group["examples"] if one["item_id"]]
    items = lake.sql("SELECT * FROM manifest WHERE item_id IN (SELECT unnest($ids))", {"ids": shown})
    at = {item: n for n, item in enumerate(items["item_id"].to_pylist())}
    processor, sources = make_processor(project), project.make_sources()
    losses = []
    for number, group in enumerate(groups):
        examples = [
            Example(one["message"], **_seen(items.take([at[one["item_id"]]]), processor, sources))
            if number < _SHOWN and one["item_id"] in at
            else Example(one["message"])
            for one in group.pop("examples")
        ]
        losses.append(Loss(**group, examples=examples if number < _SHOWN else examples[:1]))
    return losses


def _seen(item: pa.Table, processor: Processor, sources: Mapping[str, Source]) -> dict[str, Any]:
    """What an item looks like or says; nothing where it cannot be read."""
    (row,) = attach_data(item, sources).to_pylist()
    if row["data"] is None:
        return {}
    modality = processor.modalities[row["modality"]]
    try:
        content = processor.decode(row["modality"], row["data"], to_cut=row["cut"] is not None)
        seen = modality.sketch(_part(modality, content, row["cut"]))
    except MediaError:
        return {}
    return {"words": seen} if isinstance(seen, str) else {} if seen is None else {"png": _png(seen)}


def _part(modality: Any, content: Any, cut: str | None) -> Any:
    """The part that a cut names; where it is only found in the content, the whole."""
    try:
        return content if cut is None else modality.part(content, cut)
    except ValueError:
        return content


def _png(pixels: np.ndarray) -> str:
    import PIL.Image

    file = io.BytesIO()
    PIL.Image.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()
