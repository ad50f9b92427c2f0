"""Test predictions as a person reads them: what was asked, what the label says, what the model answered."""

import json
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from training.cache import open_table
from training.catalog import OUTPUTS
from training.schema import MODALITIES, subset_name
from training.spec import JobSpec, RunSpec

_ROWS = 1000  # a page shows them all at once
_CHARACTERS = 500  # of a cell


def prediction_table(spec: JobSpec, predictions: pa.Table, run: RunSpec) -> dict[str, list[Any]]:
    """Columns: sample_id; each modality as its text or the name of its file; label, prediction, the metric (if
    it is of single rows), the answer's probability, and what each modality adds to that where it is known (`X_adds`).

    Args:
        predictions: `training.schema.predictions_schema`; of those with all inputs the first thousand are taken.
    """
    metric = OUTPUTS.make(run.model.output, {}).metric()
    rows = predictions.filter(pc.equal(predictions["subset"], subset_name(run.keep))).slice(0, _ROWS).to_pylist()
    given = _inputs(spec, [row["sample_id"] for row in rows])
    table: dict[str, list[Any]] = {"sample_id": [row["sample_id"] for row in rows]}
    table |= {m: [given[row["sample_id"]][m] for row in rows] for m in run.keep}
    table |= {name: [_cell(row[name]) for row in rows] for name in ("label", "prediction")}
    if metric.score is not None:
        table[metric.name] = [metric.score(row["label"], row["prediction"]) for row in rows]
    adds = {f"{m}_adds": [row[f"{m}_adds"] for row in rows] for m in run.keep}
    adds = {name: column for name, column in adds.items() if any(value is not None for value in column)}
    return table | {"probability": [row["probability"] for row in rows]} | adds


def _inputs(spec: JobSpec, samples: Sequence[str]) -> Mapping[str, dict[str, Any]]:
    """Sample id -> modality -> text, or name of the file and which part of it; None where it has none."""
    columns = [f"{m}_{what}" for m in MODALITIES for what in ("item", "id", "more", "views")]
    wanted = pc.field("sample_id").isin(samples)
    joined = _open(spec, "samples").to_table(["sample_id", *columns], filter=wanted).to_pylist()
    items = {row[f"{m}_item"] for row in joined for m in MODALITIES} - {None}
    places = {m: _places(spec, m, {row[f"{m}_id"] for row in joined} - {None}) for m in MODALITIES}
    named = _open(spec, "manifest").to_table(
        ["item_id", "modality", "uri", "member", "row", "text"], filter=pc.field("item_id").isin(sorted(items))
    )
    names = {row["item_id"]: _name(row, spec) for row in named.to_pylist()}
    return {row["sample_id"]: {m: _given(row, m, names, places[m]) for m in MODALITIES} for row in joined}


def _given(row: Mapping[str, Any], modality: str, names: Mapping[str, str], places: Mapping[str, str]) -> str | None:
    """The first that a sample has, which part of its item it is, and how many more there are, or which views."""
    name, place, more = names.get(row[f"{modality}_item"]), places.get(row[f"{modality}_id"]), row[f"{modality}_more"]
    if name is None:
        return None
    if views := row[f"{modality}_views"]:
        return name + (f", {place}" if place else "") + f" ({', '.join(views)})"
    return name + (f", {place}" if place else "") + (f" (+{len(more)} more)" if more else "")


def _places(spec: JobSpec, modality: str, ids: set[str]) -> dict[str, str]:
    """Of those contents that are parts of an item which ones, in words."""
    if not ids or not (kind := spec.features.modality(modality)).can_be_cut:
        return {}
    is_part = pc.field("id").isin(sorted(ids)) & (pc.field("id") != pc.field("parent_id"))
    rows = _open(spec, f"clean_{modality}").to_table(["id", *kind.place], filter=is_part).to_pylist()
    return {row["id"]: kind.where(row) for row in rows}


def _open(spec: JobSpec, table: str) -> Any:
    return open_table(spec.lake, table, storage_options=spec.storage_options)


def _name(item: Mapping[str, Any], spec: JobSpec) -> str:
    modality, file = spec.features.modality(item["modality"]), PurePosixPath(item["uri"]).name
    if modality.is_text:
        return str(_cell(item["text"]))
    if modality.as_string and item["row"] is not None:  # vectors, which nobody reads
        return f"{file}, row {item['row']}"
    return item["member"] or file


def _cell(value: Any) -> Any:
    """As JSON can carry it, and a page can show it."""
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>"
    if value is None or isinstance(value, bool | int | float):
        return value
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else str(value)
    return text if len(text) <= _CHARACTERS else text[: _CHARACTERS - 1] + "…"
