"""Samples of which each modality is vectors."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds

from training.cache import FeatureCache
from training.data import SampleDataset
from training.features import FeatureSettings
from training.schema import DATASET, features_table

MODALITIES = ("text", "image", "speech")
FEATURES = FeatureSettings(**{m: {"kind": "vector", "width": 4} for m in MODALITIES})


def make(root: Path) -> SampleDataset:
    """32 samples, labelled high or low, with vectors around 1 or -1; every fourth lacks the image, and every eighth has
    two vectors of speech instead of one."""
    random, caches = np.random.default_rng(0), {}
    for m in MODALITIES:
        sizes = [1 + (m == "speech" and n % 8 == 3) for n in range(32)]
        features = [
            {"id": f"{m}{n}", "fingerprint": "f", "vector": random.normal(n % 2 * 2 - 1, 0.3, (size, 4))}
            for n, size in enumerate(sizes)
        ]
        caches[m] = FeatureCache(root, m, "f", {"vector": "float32"})
        caches[m].add(ds.dataset(features_table(m, {"vector": "float32"}, features)), [row["id"] for row in features])
    index = [
        {"sample_id": f"s{n:02d}", "label": ("low", "high")[n % 2]}
        | {f"{m}_id": f"{m}{n}" for m in MODALITIES if n % 4 or m != "image"}
        for n in range(32)
    ]
    return SampleDataset(pa.Table.from_pylist(index, DATASET), caches)
