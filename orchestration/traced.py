"""What `triptych trace` tells (`orchestration.trace`)."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ModelFacts:
    """A registered version; what is null is no longer known."""

    version: str
    aliases: list[str]
    run_id: str | None
    dataset_fingerprint: str | None


@dataclass(frozen=True)
class SnapshotFacts:
    """The dataset that the model was trained on."""

    fingerprint: str
    time: str | None  # when it was made; null: it is no longer there
    tables: dict[str, int]  # the versions that it was made of


@dataclass(frozen=True)
class Item:
    """A raw item, as the snapshot's manifest has it, and what is there now."""

    modality: str
    item_id: str
    source: str
    uri: str
    member: str | None
    row: int | None
    sha256: str  # of the item's bytes
    id: str  # of the content: the item, or a part of it
    part: str | None  # which
    text: str | None
    now: str  # what became of the file, in words
    features: dict[str, str]  # table and fingerprint of its feature row; with `id` they are its key


@dataclass(frozen=True)
class Near:
    """A training row that the model takes for alike."""

    sample_id: str
    similarity: float  # cosine
    label: str | None
    given: list[str]  # its texts, and where its media lie


@dataclass(frozen=True)
class Seen:
    """A dataset that has an item, and what was trained on it."""

    snapshot: str
    time: str
    samples: dict[str, list[str]]  # split -> sample ids; none: it was listed, and is in no sample
    models: list[str]  # registered versions
    runs: dict[str, str]  # MLflow runs beside them, such as baselines: run id -> role


@dataclass(frozen=True)
class Traced:
    project: str
    id: str
    kind: str  # answer, sample or item
    model: ModelFacts | None = None
    snapshot: SnapshotFacts | None = None
    answer: dict[str, Any] | None = None  # what was asked and answered; of a sample its prediction
    sample: dict[str, Any] | None = None  # the row of `samples`
    items: list[Item] = field(default_factory=list)  # of an answer those that are what was asked, if any are
    nearest: list[Near] = field(default_factory=list)
    nearest_by: str = ""  # what is compared
    seen: list[Seen] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)  # what can no longer be told, and why
