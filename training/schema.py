"""Schemas of every table and the fingerprints that key their rows: declared once, used by all.

Rows of clean and feature tables are keyed by ``(id, fingerprint)``: ``id`` is the SHA-256 of the input bytes (or of
the parent's id and the cut), ``fingerprint`` names the step that made the row. Tensors are ``binary`` columns with
their shape beside them (``X`` and ``X_shape``), because Delta Lake has no fixed-size lists; their dtype is in
``TENSOR_DTYPES``.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

SCHEMA_VERSION = 1
MODALITIES = ("text", "image", "speech")
SPLITS = ("train", "validation", "test")

_STRING, _INT = pa.string(), pa.int64()
_TIME = pa.timestamp("us", tz="UTC")


def _schema(**fields: pa.DataType) -> pa.Schema:
    return pa.schema(list(fields.items()), metadata={"triptych.schema_version": str(SCHEMA_VERSION)})


# One row per readable input item. `item_id` names the place (source and where in it), `sha256` the content.
MANIFEST = _schema(
    item_id=_STRING,
    source=_STRING,
    modality=_STRING,
    key=_STRING,  # what `align` joins on; null: the item cannot be joined by key
    uri=_STRING,  # file or archive, or table for text
    member=_STRING,  # path within the archive
    row=_INT,  # line or row of the table, from 1 (the header is line 1 of a CSV)
    offset=_INT,  # first byte of the member in the archive
    size=_INT,  # bytes
    mtime=_TIME,  # of file or archive, or of its inode if later; null: just before it was listed, so it is read again
    time=_TIME,  # when it was recorded, where the source says so
    sha256=_STRING,  # of the file's bytes; of a text in UTF-8, whatever the file's encoding
    text=pa.large_string(),  # text items only: the content itself
    attributes=_STRING,  # the table's other columns as a JSON object of strings
)

# Everything that did not pass, with why. Content failures are keyed by (sha256, fingerprint); failures of an item as
# such (file not found, key not matched) by item_id.
QUARANTINE = _schema(
    stage=_STRING,  # manifest | clean | featurize | align
    outcome=_STRING,  # quarantined | duplicate | unmatched
    reason=_STRING,  # a code: not_found, truncated, empty, ...
    message=_STRING,  # a sentence for a person, naming the file, key or row
    item_id=_STRING,
    source=_STRING,
    modality=_STRING,
    key=_STRING,
    uri=_STRING,
    member=_STRING,
    row=_INT,
    sha256=_STRING,
    fingerprint=_STRING,  # of the step that refused it
)

_CLEAN_KEY = {"id": _STRING, "parent_id": _STRING, "fingerprint": _STRING}
CLEAN = {
    "text": _schema(
        **_CLEAN_KEY,
        text=pa.large_string(),  # normalised
        language=_STRING,
        words=pa.list_(_STRING),  # segmented
        content_words=pa.list_(_STRING),  # without stop words
        warnings=pa.list_(_STRING),
    ),
    "image": _schema(
        **_CLEAN_KEY,
        format=_STRING,
        mode=_STRING,
        width=_INT,  # upright, after EXIF orientation
        height=_INT,
        warnings=pa.list_(_STRING),
    ),
    "speech": _schema(
        **_CLEAN_KEY,
        format=_STRING,
        sample_rate=_INT,
        channels=_INT,
        frames=_INT,
        seconds=pa.float64(),
        rms=pa.float64(),
        warnings=pa.list_(_STRING),
    ),
}

# dtype of each tensor column; its shape lies in the column X_shape.
TENSOR_DTYPES = {
    "input_ids": "int32",  # (tokens,)
    "pixels": "uint8",  # (channels, height, width)
    "log_mel": "float32",  # (frames, mels)
    "mfcc": "float32",  # (frames, coefficients)
    "waveform": "int16",  # (samples,) at the feature's sample rate; kept only where augmentation asks for it
}
MODALITY_TENSORS = {"text": ("input_ids",), "image": ("pixels",), "speech": ("log_mel", "mfcc", "waveform")}


def _features(modality: str) -> pa.Schema:
    fields: dict[str, pa.DataType] = {"id": _STRING, "fingerprint": _STRING}
    if modality == "text":
        fields["text"] = pa.large_string()  # what a language model with a tokenizer of its own reads
    for name in MODALITY_TENSORS[modality]:
        fields |= {name: pa.binary(), f"{name}_shape": pa.list_(pa.int32())}
    return _schema(**fields)


FEATURES = {modality: _features(modality) for modality in MODALITIES}

# One row per sample, written whole. X_id joins features and clean tables, X_item the manifest; X_status says why a
# modality is null: present | absent (never given) | not_found (a link to nothing) | quarantined.
SAMPLES = _schema(
    sample_id=_STRING,
    label=_STRING,
    split=_STRING,  # train | validation | test | unlabelled | excluded (its groups fall in different splits)
    groups=_STRING,  # JSON object: group column -> value
    time=_TIME,
    **{f"{m}_id": _STRING for m in MODALITIES},
    **{f"{m}_item": _STRING for m in MODALITIES},
    **{f"{m}_status": _STRING for m in MODALITIES},
    attributes=_STRING,  # JSON object: the link table's other columns
)

DATASET = _schema(
    sample_id=_STRING,
    label=_STRING,
    split=_STRING,
    **{f"{m}_id": _STRING for m in MODALITIES},
    attributes=_STRING,
)


def predictions_schema(answer: pa.DataType) -> pa.Schema:
    """What a model answered: one row per sample and subset of the inputs ("image+speech", "text", ...).

    Args:
        answer: type of label and prediction (`training.outputs.base.Output.arrow_type`).
    """
    return _schema(sample_id=_STRING, subset=_STRING, label=answer, prediction=answer)


TABLES: dict[str, pa.Schema] = {
    "manifest": MANIFEST,
    "quarantine": QUARANTINE,
    **{f"clean_{m}": CLEAN[m] for m in MODALITIES},
    **{f"{m}_features": FEATURES[m] for m in MODALITIES},
    "samples": SAMPLES,
    "dataset": DATASET,
}


def tensor_columns(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """One row's tensors as the columns that hold them: bytes in C order, and the shape."""
    columns: dict[str, Any] = {}
    for name, tensor in tensors.items():
        columns[name] = np.ascontiguousarray(tensor, dtype=TENSOR_DTYPES[name]).tobytes()
        columns[f"{name}_shape"] = list(tensor.shape)
    return columns


def tensor(row: Mapping[str, Any], name: str) -> np.ndarray:
    """The tensor `name` of a row of a feature table (read-only: it shares the row's bytes)."""
    return np.frombuffer(row[name], dtype=TENSOR_DTYPES[name]).reshape(row[f"{name}_shape"])


def subset_name(modalities: Any) -> str:
    """Canonical name of a set of modalities: ``text+image``."""
    return "+".join(m for m in MODALITIES if m in modalities)


def fingerprint(*parts: Any) -> str:
    """16 hex digits that name a step, its settings and versions: SHA-256 of their canonical JSON."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
