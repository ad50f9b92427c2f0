"""The dataset: an index of samples and the features they join to, with fingerprints that name samples and snapshot."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import reduce
from json.encoder import encode_basestring as quote

import pyarrow as pa
import pyarrow.compute as pc

from assets.lake import BATCH_ROWS, in_order
from training.schema import DATASET, MODALITIES, SAMPLES, SPLITS, fingerprint


def make_dataset(samples: pa.Table) -> pa.Table:
    """The samples a model can use: those with at least one modality and a place in a split (or no label yet).

    Samples whose groups fall in different splits stay in `samples` with split ``excluded``; they are not lost, but
    no model may see them.
    """
    any_input = reduce(pc.or_, (pc.is_valid(samples[f"{modality}_id"]) for modality in MODALITIES))
    usable = pc.is_in(samples["split"], pa.array([*SPLITS, "unlabelled"]))
    kept = samples.filter(pc.and_(any_input, usable))
    more = {f"{m}_more": _further(kept[f"{m}_more"]) for m in MODALITIES}
    columns = [more[f.name] if f.name in more else kept[f.name] for f in DATASET]
    return in_order(pa.table(columns, schema=DATASET), "sample_id")


def _further(more: pa.ChunkedArray) -> pa.Array:
    """The contents of the further items of each sample, in order; null where there are none."""
    if more.null_count == len(more):
        return pa.nulls(len(more), pa.list_(pa.string()))
    items = more.combine_chunks()
    return pa.ListArray.from_arrays(items.offsets, pc.struct_field(items.values, "id"), mask=items.is_null())


def check_columns(samples: pa.Table, columns: Sequence[str]) -> None:
    """Raises ValueError where `model.prompt` names a column that no sample has, or one that gives the label away."""
    if not columns:
        return
    cells = [json.loads(cell or "{}") for cell in samples["attributes"].to_pylist()]
    there = sorted({name for cell in cells for name in cell})
    labels = samples["label"].to_pylist()
    for column in columns:
        if column not in there:
            raise ValueError(
                f"model.prompt has {{{column}}}, and no sample has a column {column!r}; there are "
                f"{', '.join(there) or 'none'} (`attributes` of the table samples)"
            )
        pairs = [(label, cell.get(column)) for label, cell in zip(labels, cells, strict=True) if label is not None]
        if pairs and all(label == value for label, value in pairs):
            raise ValueError(
                f"model.prompt has {{{column}}}, which is the label in every sample: the model would read its answer"
            )


def dataset_fingerprint(samples_fingerprint: str, features: Mapping[str, str]) -> str:
    """Names a snapshot by the content of its samples and the steps that made their features."""
    return fingerprint("dataset", samples_fingerprint, dict(features))


def split_counts(dataset: pa.Table) -> dict[str, int]:
    """Rows per split, with 0 for a split that is empty."""
    counted = {row["values"]: row["counts"] for row in pc.value_counts(dataset["split"]).to_pylist()}
    return {split: counted.pop(split, 0) for split in SPLITS} | counted


def missing_rates(dataset: pa.Table) -> dict[str, float]:
    """Share of rows that lack each modality; 1.0 where no row has it."""
    rows = max(1, dataset.num_rows)
    return {m: dataset[f"{m}_id"].null_count / rows for m in MODALITIES}


def samples_fingerprint(samples: pa.Table) -> str:
    """16 hex digits of the samples' logical content, whatever the order of rows and the names of files.

    Covers each sample's id, label, split, groups, attributes, and contents and status of its modalities; not where the
    items lie (`X_item`) nor when they were recorded.
    """
    names = [f.name for f in SAMPLES if not f.name.endswith(("_item", "_more", "_views")) and f.name != "time"]
    logical, digest = samples.select(names), hashlib.sha256()
    for more in (f"{m}_more" for m in MODALITIES):
        if samples[more].null_count < samples.num_rows:
            logical = logical.append_column(more, pc.binary_join(_further(samples[more]), ","))
            digest.update(f"{more}\n".encode())
    for views in (f"{m}_views" for m in MODALITIES):
        if samples[views].null_count < samples.num_rows:
            logical = logical.append_column(views, pc.binary_join(samples[views], ","))
            digest.update(f"{views}\n".encode())
    for batch in in_order(logical, "sample_id").to_batches(max_chunksize=BATCH_ROWS):
        # Each row is a JSON array on a line of its own.
        cells = pc.binary_join_element_wise(*map(_as_json, batch.columns), ",")
        digest.update("".join(f"[{row}]\n" for row in cells.to_pylist()).encode())
    return digest.hexdigest()[:16]


def _as_json(strings: pa.Array) -> pa.Array:
    if strings.null_count == len(strings):
        return pa.repeat("null", len(strings))
    if pc.any(pc.match_substring_regex(strings, r'["\\\x00-\x1f]')).as_py():
        return pa.array(["null" if value is None else quote(value) for value in strings.to_pylist()])
    return pc.fill_null(pc.binary_join_element_wise('"', strings, '"', ""), "null")
