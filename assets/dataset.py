"""The dataset: an index of samples and the features they join to, with a fingerprint that names the snapshot."""

from collections.abc import Mapping
from functools import reduce

import pyarrow as pa
import pyarrow.compute as pc

from assets.lake import in_order
from training.schema import DATASET, MODALITIES, SPLITS, fingerprint


def make_dataset(samples: pa.Table) -> pa.Table:
    """The samples a model can use: those with at least one modality and a place in a split (or no label yet).

    Samples whose groups fall in different splits stay in `samples` with split ``excluded``; they are not lost, but
    no model may see them.
    """
    any_input = reduce(pc.or_, (pc.is_valid(samples[f"{modality}_id"]) for modality in MODALITIES))
    usable = pc.is_in(samples["split"], pa.array([*SPLITS, "unlabelled"]))
    kept = samples.filter(pc.and_(any_input, usable))
    return in_order(kept.select(DATASET.names), "sample_id")


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
