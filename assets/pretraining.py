"""Which rows encoders learn from before they read labels, and what names that."""

import hashlib
from collections.abc import Mapping

from assets.lake import BATCH_ROWS, Lake
from assets.settings import Project
from training.schema import MODALITIES, UNLABELLED
from training.spec import PretrainingSpec, plan_pretraining

_ROWS = f"""
SELECT * EXCLUDE (label, attributes) FROM dataset WHERE split IN ('train', '{UNLABELLED}') ORDER BY sample_id
"""
# Samples without a label fall into no split: of those that have a group, or a content, of a sample that models are
# judged by, nothing is learned.
_LEFT_OUT = f"""
WITH judged AS (SELECT * FROM samples WHERE split IN ('validation', 'test')), loose AS (
  SELECT * FROM samples WHERE split = '{UNLABELLED}'
), groups AS (
  SELECT DISTINCT unnest(map_entries(groups::JSON::MAP(VARCHAR, VARCHAR))) AS entry FROM judged
)
SELECT sample_id FROM loose
WHERE EXISTS (SELECT 1 FROM groups WHERE entry.value IS NOT NULL
  AND list_contains(map_entries(loose.groups::JSON::MAP(VARCHAR, VARCHAR)), entry))
{"".join(f" OR {m}_id IN (SELECT {m}_id FROM judged WHERE {m}_id IS NOT NULL)" for m in MODALITIES)}
ORDER BY 1
"""


def planned(lake: Lake, project: Project, features: Mapping[str, str]) -> PretrainingSpec:
    """What the models of the present dataset start from, where the project asks for it.

    Args:
        features: modality -> fingerprint of the dataset's features.
    """
    assert project.pretraining is not None
    left_out = lake.sql(_LEFT_OUT)["sample_id"].to_pylist()
    without, digest = set(left_out), hashlib.sha256(repr(sorted(features.items())).encode())
    for batch in lake.stream(_ROWS, {}, BATCH_ROWS):
        for row in batch.to_pylist():
            if row["sample_id"] not in without:
                digest.update(repr(row).encode())
    return plan_pretraining(
        project.pretraining,
        project.model,
        project.training,
        project.features,
        project.modalities,
        digest.hexdigest(),
        project.align.places,
        left_out,
    )
