"""The dataset: an index of samples and the features they join to, with fingerprints that name samples and snapshot."""

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from assets.lake import BATCH_ROWS, in_order, sql_among
from assets.names import as_json
from assets.splits import pointer
from training.schema import DATASET, MODALITIES, SAMPLES, SPLITS, UNLABELLED, fingerprint


def dataset_sql() -> str:
    """SQL over `samples` for the rows of `dataset`: the samples a model can use, those with at least one modality and a
    place in a split (or no label yet).

    Samples whose groups fall in different splits stay in `samples` with split ``excluded``; they are not lost, but
    no model may see them.
    """
    columns = (f"[item.id for item in {n}] AS {n}" if n.endswith("_more") else n for n in DATASET.names)
    any_input = f"coalesce({', '.join(f'{m}_id' for m in MODALITIES)}) IS NOT NULL"
    usable = sql_among("split", [*SPLITS, UNLABELLED])
    return f"SELECT {', '.join(columns)} FROM samples WHERE {any_input} AND {usable} ORDER BY sample_id"


def _listed(items: pa.Array) -> pa.Array:
    """The views of each sample, or the contents of its further items, in order; null where there are none."""
    if items.null_count == len(items):
        return pa.nulls(len(items), pa.list_(pa.string()))
    if not pa.types.is_struct(items.type.value_type):
        return items
    return pa.ListArray.from_arrays(items.offsets, pc.struct_field(items.values, "id"), mask=items.is_null())


def check_columns(connection: duckdb.DuckDBPyConnection, table: str, columns: Sequence[str]) -> None:
    """Raises ValueError where `model.prompt` names a column that no sample of a relation (`samples` or `dataset`) has,
    or one that gives the label away."""
    if not columns:
        return
    check_attributes(connection, table, {column: f"model.prompt has {{{column}}}" for column in columns})
    for column in columns:
        ((labelled, same),) = connection.execute(
            f"SELECT count(*), count_if(label = json_extract_string(attributes, $1)) FROM {table} "
            "WHERE label IS NOT NULL",
            [pointer(column)],
        ).fetchall()
        if labelled and labelled == same:
            raise ValueError(
                f"model.prompt has {{{column}}}, which is the label in every sample: the model would read its answer"
            )


def check_attributes(connection: duckdb.DuckDBPyConnection, table: str, named: Mapping[str, str]) -> None:
    """Raises ValueError where no sample of a relation has one of these columns.

    Args:
        named: column -> who asks for it, as the beginning of a sentence.
    """
    if not named:
        return
    there = connection.sql(f"SELECT DISTINCT unnest(json_keys(attributes)) FROM {table} ORDER BY 1").fetchall()
    for column, who in named.items():
        if (column,) not in there:
            raise ValueError(
                f"{who}, and no sample has a column {column!r}; there are "
                f"{', '.join(name for (name,) in there) or 'none'} (`attributes` of the table samples)"
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
    lists = [name for name in LISTS if samples[name].null_count < samples.num_rows]
    return fingerprint_of(in_order(samples, "sample_id").to_batches(max_chunksize=BATCH_ROWS), lists)


LISTS = [f"{m}_{part}" for part in ("more", "views") for m in MODALITIES]  # columns of samples that most have not


def fingerprint_of(batches: Iterable[pa.RecordBatch], lists: Collection[str]) -> str:
    """`samples_fingerprint` of samples that come in the order of their ids.

    Args:
        lists: those of LISTS that any sample has.
    """
    names = [f.name for f in SAMPLES if not f.name.endswith(("_item", "_more", "_views")) and f.name != "time"]
    some, digest = [name for name in LISTS if name in lists], hashlib.sha256()
    digest.update("".join(f"{name}\n" for name in some).encode())
    for batch in batches:
        columns = [batch[name] for name in names]
        columns += [pc.binary_join(_listed(batch[name]), ",") for name in some]
        # Each row is a JSON array on a line of its own.
        cells = pc.binary_join_element_wise(*(pc.fill_null(as_json(column), "null") for column in columns), ",")
        lines = pc.binary_join_element_wise("[", cells, "]\n", "")
        digest.update(pc.binary_join(pa.ListArray.from_arrays([0, len(lines)], lines), "")[0].as_buffer())
    return digest.hexdigest()[:16]
