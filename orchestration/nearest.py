"""The training rows nearest to an answer or a sample: by the model's own x_m where it is kept, else by features."""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from assets.compressing import reader
from assets.lake import Lake
from assets.settings import Project
from training import mlflow_facts
from training.representations import FILE, Places
from training.schema import MODALITIES

_ROWS = 2000  # training contents whose features are looked at; they may be large


@lru_cache(maxsize=4)
def places_of(uri: str, run_id: str) -> Places | None:
    """Where a run's model places its rows; None where that was not kept."""
    kept = mlflow_facts.artifact(uri, run_id, FILE)
    return None if kept is None else Places(kept)


def by_features(
    lake: Lake, project: Project, contents: Mapping[str, str], most: int, but: str | None
) -> tuple[str, list[tuple[str, float]]]:
    """What is compared, in words, and the nearest training samples by the cosine of the features of one content each,
    the first modality that has any; nothing where none has numbers of one shape.

    Args:
        lake: as it was (`assets.snapshots`), so that features are those of the snapshot.
        contents: modality -> content id.
    """
    for modality in MODALITIES:
        if modality not in contents or modality not in project.modalities:
            continue
        featurizer = project.features.featurizer(modality)
        name = featurizer.read
        dtype = featurizer.tensors.get(name or "")
        if name is None or dtype is None or not (dtype.startswith("float") or dtype == "uint8"):  # ids have no cosine
            continue
        found = _nearest(lake, modality, *reader(project, modality, name), contents[modality], most, but)
        if found:
            return f"{modality} features", found
    return "", []


def _nearest(
    lake: Lake,
    modality: str,
    names: Sequence[str],
    read: Callable[[Mapping[str, Any]], np.ndarray],
    content: str,
    most: int,
    but: str | None,
) -> list[tuple[str, float]]:
    if not {*names} <= {*lake.schema(f"{modality}_features").names}:  # the settings are others by now
        return []
    columns, there = ", ".join(["id", *names]), f"{names[0]} IS NOT NULL"
    asked = lake.sql(
        f"SELECT {columns} FROM {modality}_features WHERE id = $id AND {there} LIMIT 1", {"id": content}
    ).to_pylist()
    if not asked:
        return []
    place = read(asked[0]).astype(np.float32).ravel()
    rows = lake.sql(
        f"""
        WITH trained AS (
          SELECT {modality}_id AS id, min(sample_id) AS sample_id FROM dataset
          WHERE split = 'train' AND {modality}_id IS NOT NULL AND sample_id IS DISTINCT FROM $but
          GROUP BY 1 ORDER BY hash({modality}_id) LIMIT {_ROWS}
        ), featured AS (
          SELECT DISTINCT ON (id) {columns} FROM {modality}_features WHERE {there} AND id IN (SELECT id FROM trained)
        )
        SELECT sample_id, {", ".join(names)} FROM trained JOIN featured USING (id) ORDER BY sample_id
        """,
        {"but": but},
    )
    found = []
    for row in rows.to_pylist():
        other = read(row).astype(np.float32).ravel()
        if len(other) == len(place):
            norms = max(float(np.linalg.norm(place) * np.linalg.norm(other)), 1e-12)
            found.append((row["sample_id"], round(float(place @ other) / norms, 4)))
    return sorted(found, key=lambda pair: (-pair[1], pair[0]))[:most]
