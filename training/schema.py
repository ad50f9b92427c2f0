"""Schemas of every table and the fingerprints that key their rows: declared once, used by all.

Rows of clean and feature tables are keyed by ``(id, fingerprint)``: ``id`` is the SHA-256 of the input bytes (or of
the parent's id and the cut), ``fingerprint`` names the step that made the row. Tensors are ``binary`` columns with
their shape beside them (``X`` and ``X_shape``), because Delta Lake has no fixed-size lists; their dtype is what the
featurizer says (`training.featurizers`).
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa

from training import catalog

SCHEMA_VERSION = 6
MODALITIES = catalog.MODALITIES.names()
SPLITS = ("train", "validation", "test")
UNLABELLED = "unlabelled"  # what stands in their place where a sample has no label

_STRING, _INT = pa.string(), pa.int64()
_STRINGS = pa.list_(_STRING)
_TIME = pa.timestamp("us", tz="UTC")
_MORE = pa.list_(pa.struct([("item", _STRING), ("id", _STRING)]))  # of a sample's further items; null: none


def _schema(**fields: pa.DataType) -> pa.Schema:
    return pa.schema(list(fields.items()), metadata={"triptych.schema_version": str(SCHEMA_VERSION)})


# One row per readable input item.
MANIFEST = _schema(
    item_id=_STRING,
    source=_STRING,
    modality=_STRING,
    key=_STRING,
    uri=_STRING,
    member=_STRING,
    row=_INT,
    offset=_INT,
    size=_INT,
    mtime=_TIME,
    etag=_STRING,
    time=_TIME,
    until=_TIME,
    sha256=_STRING,
    cut=_STRING,
    text=pa.large_string(),
    attributes=_STRING,
)

# Everything that did not pass, with why. Content failures are keyed by (sha256, fingerprint); failures of an item as
# such (file not found, key not matched) by item_id. A content is the bytes of `sha256`, or the part of them that `cut`
# says.
QUARANTINE = _schema(
    stage=_STRING,
    outcome=_STRING,
    reason=_STRING,
    message=_STRING,
    item_id=_STRING,
    source=_STRING,
    modality=_STRING,
    key=_STRING,
    uri=_STRING,
    member=_STRING,
    row=_INT,
    sha256=_STRING,
    cut=_STRING,
    fingerprint=_STRING,
)

_CLEAN_KEY = {"id": _STRING, "parent_id": _STRING, "cut": _STRING, "fingerprint": _STRING}
_CLASSES = {name: catalog.MODALITIES.load(name) for name in MODALITIES}
CLEAN = {name: _schema(**_CLEAN_KEY, **m.columns, warnings=pa.list_(_STRING)) for name, m in _CLASSES.items()}

# What filters measured of clean contents; each under the fingerprint of its own way to measure.
MEASUREMENTS = _schema(id=_STRING, modality=_STRING, filter=_STRING, fingerprint=_STRING, value=pa.float64())

# What each fingerprint in these tables stands for, so that it can be said why rows are made anew.
STEPS = _schema(fingerprint=_STRING, modality=_STRING, step=_STRING, parts=_STRING)

# What near duplicates are told by (`training.signatures`). Null: too little to tell the content from others.
SIGNATURES = _schema(id=_STRING, modality=_STRING, kind=_STRING, fingerprint=_STRING, value=pa.binary())

# Contents that are the same but for how they were kept or changed, by their signatures; `first` is the lesser id.
NEAR_DUPLICATES = _schema(modality=_STRING, first=_STRING, second=_STRING, similarity=pa.float64())

# Where a model places contents (`Output.is_embedding`); the fingerprint names model and modality. Null: it refuses it.
EMBEDDINGS = _schema(id=_STRING, modality=_STRING, fingerprint=_STRING, embedding=pa.list_(pa.float32()))

# What compressions have found in the features of the first run, once for all later ones (`training.compressions`).
FITS = _schema(fingerprint=_STRING, made_with=_STRING, time=_TIME, tensors=pa.binary())

# Without tensors: which there are depends on the kind of features, so these tables grow columns (`features_schema`).
FEATURES = {name: _schema(id=_STRING, fingerprint=_STRING, **m.extra) for name, m in _CLASSES.items()}


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table with exactly the columns and types of the schema; a column that it lacks is null."""
    columns = [
        table[f.name].cast(f.type) if f.name in table.column_names else pa.nulls(table.num_rows, f.type) for f in schema
    ]
    return pa.table(columns, schema=schema)


LOSS = "_compression_loss"  # how the name of the column ends that says what was lost of a compressed tensor


def feature_type(column: str) -> pa.DataType:
    """Of a column of a feature table that not all have."""
    if column.endswith("_shape"):
        return pa.list_(pa.int32())
    return pa.list_(pa.float32()) if column.endswith(LOSS) else pa.binary()


def features_schema(modality: str, tensors: Iterable[str]) -> pa.Schema:
    """Of the feature rows with these tensors: bytes in C order, and the shape beside them; a loss has no shape."""
    names = [n for name in tensors for n in ((name,) if name.endswith(LOSS) else (name, f"{name}_shape"))]
    schema = FEATURES[modality]
    return pa.schema([*schema, *(pa.field(name, feature_type(name)) for name in names)], metadata=schema.metadata)


# Rows as a model gets them from outside, before anything is decoded: text as it is, media as the bytes of the file.
_RAW_TYPES = {name: m().raw_type for name, m in _CLASSES.items()}
RAW = _schema(
    sample_id=_STRING,
    label=_STRING,
    **_RAW_TYPES,
    **{f"{name}_more": pa.list_(kind) for name, kind in _RAW_TYPES.items()},
    **{f"{name}_views": _STRINGS for name in MODALITIES},
    attributes=_STRING,
)

# One row per sample, written whole.
SAMPLES = _schema(
    sample_id=_STRING,
    label=_STRING,
    split=_STRING,
    groups=_STRING,
    time=_TIME,
    **{f"{m}_id": _STRING for m in MODALITIES},
    **{f"{m}_item": _STRING for m in MODALITIES},
    **{f"{m}_more": _MORE for m in MODALITIES},
    **{f"{m}_views": _STRINGS for m in MODALITIES},
    **{f"{m}_status": _STRING for m in MODALITIES},
    **{f"{m}_pool": _STRING for m in MODALITIES},
    attributes=_STRING,
)

DATASET = _schema(
    sample_id=_STRING,
    label=_STRING,
    split=_STRING,
    **{f"{m}_id": _STRING for m in MODALITIES},
    **{f"{m}_more": _STRINGS for m in MODALITIES},
    **{f"{m}_views": _STRINGS for m in MODALITIES},
    **{f"{m}_pool": _STRING for m in MODALITIES},
    attributes=_STRING,
)


# Which versions of the tables each dataset was made of, and by which steps: one row for each table that is kept by
# versions (INDEX_TABLES), and for each step whose rows belong to it.
SNAPSHOTS = _schema(snapshot=_STRING, name=_STRING, version=_INT, fingerprint=_STRING, time=_TIME)

# The most probable answers, the best first.
BEST = pa.list_(pa.struct([("answer", _STRING), ("probability", pa.float64())]))

# What was answered, where `answers.log` says so. `x_m` is where the model places what was given: the mean of its soft
# tokens.
ANSWERS = _schema(
    answer_id=_STRING,
    time=_TIME,
    model_version=_STRING,
    dataset_fingerprint=_STRING,
    subset=_STRING,
    inputs=pa.list_(pa.struct([("name", _STRING), ("sha256", _STRING), ("text", pa.large_string())])),
    prediction=_STRING,
    probability=pa.float64(),
    best=BEST,
    adapter=_STRING,
    x_m=pa.list_(pa.float32()),
)

# What was asked, where `answers.inputs` says so: each content once.
ANSWER_INPUTS = _schema(sha256=_STRING, name=_STRING, time=_TIME, data=pa.binary())

# What people said of answers; of what one person said of an answer the latest counts.
FEEDBACK = _schema(answer_id=_STRING, time=_TIME, verdict=_STRING, answer=_STRING, by=_STRING)

# Pairs of answers that feedback comes to, with the contents that they are answers to.
PREFERENCES = _schema(
    answer_id=_STRING,
    chosen=_STRING,
    rejected=_STRING,
    **{f"{m}_id": _STRING for m in MODALITIES},
    **{f"{m}_more": _STRINGS for m in MODALITIES},
    attributes=_STRING,
)

# Where several answer at once: what is known of each one's answer.
PARTS = pa.list_(pa.struct([("output", _STRING), ("probability", pa.float64()), ("best", BEST)]))


def predictions_schema(answer: pa.DataType) -> pa.Schema:
    """What a model answered: one row per sample and subset of the inputs ("image+speech", "text", ...).

    Args:
        answer: type of label and prediction (`training.outputs.base.Output.judged_type`).
    """
    columns = {"sample_id": _STRING, "subset": _STRING, "label": answer, "prediction": answer}
    return _schema(**columns, probability=pa.float64(), best=BEST, parts=PARTS, **dict.fromkeys(ADDS, pa.float64()))


# Where all inputs are given: what each adds to the probability of the answer (`training.shapley`).
ADDS = tuple(f"{m}_adds" for m in MODALITIES)


MAJORITY = "majority"  # in the place of a subset: the one answer that is best whatever the inputs

# What the columns mean, wherever they stand. Those of one modality are its own (`Modality.column_words`).
COLUMN_WORDS = {
    "item_id": "names the item's place: the source, and where in it",
    "source": "name of the source in the project file",
    "modality": "what kind of item it is",
    "key": "what `align` joins on; null: the item cannot be joined by key",
    "uri": "file or archive, or table for text",
    "member": "path within the archive",
    "row": "line or row of the table, from 1 (the header is line 1 of a CSV)",
    "offset": "first byte of the member in the archive",
    "size": "bytes",
    "mtime": "of file or archive, or of its inode if later; null: just before it was listed, so it is read again",
    "etag": "what a store calls the content that it has at that place; null: it does not say",
    "time": "when it was recorded, or began, where the source says so",
    "until": "when it ended, where the source says so",
    "sha256": "of the file's bytes; of a text in UTF-8, whatever the file's encoding",
    "cut": "null: the whole content; two microseconds: that stretch of it; JSON: that crop; a name: the parts that "
    "this way to cut finds, or with a number one of them",
    "text": "the text itself",
    "attributes": "the table's other columns, as a JSON object of strings",
    "stage": "of the pipeline: manifest, clean, featurize, filter or align",
    "outcome": "quarantined, duplicate or unmatched",
    "reason": "a code: not_found, truncated, empty, ...",
    "message": "a sentence that names the file, key or row",
    "fingerprint": "of the step that made or refused the row: version, settings and libraries",
    "id": "hash of the content; that of a part (segment, crop) differs from its item's",
    "parent_id": "hash of the item's own bytes",
    "warnings": "what is odd and was mended, or should be known",
    "filter": "what was measured",
    "value": "of the measurement, or the signature itself",
    "step": "clean, features, limits (what they refused), or the filter that measures",
    "parts": "what the fingerprint is made of, as a JSON object: versions, settings, files, packages",
    "kind": "of the signature, as the project file names it",
    "made_with": "fingerprint of the feature rows",
    "first": "a content",
    "second": "another content that is a near duplicate of it",
    "similarity": "of their signatures; 1: the same",
    "embedding": "where a model places the content among all others, as a vector of length 1",
    "sample_id": "names the sample",
    "answer_id": "names an answer that was given",
    "model_version": "of the model that gave it",
    "dataset_fingerprint": "of the dataset that this version was trained on",
    "subset": "the inputs that were given",
    "inputs": "SHA-256 of each content that was given; its text only with `answers.texts`",
    "prediction": "as JSON; null: it was withheld",
    "probability": "that the prediction is right",
    "best": "the most probable answers, the best first, as many as were asked for",
    "data": "the bytes of the content; of a text in UTF-8",
    "adapter": "the group whose adapter answered (personalization); null: the model that all share",
    "verdict": "right or wrong, as people said of the answer",
    "answer": "the right one, where a person told it",
    "by": "who said it; null: nobody was named",
    "chosen": "the answer that is preferred",
    "rejected": "the answer that it is preferred to",
    "x_m": "where the model places what was given: the mean of its soft tokens",
    "snapshot": "fingerprint of a dataset",
    "name": "of a table that it was made of",
    "version": "of that table; null: its rows are known by the step's fingerprint",
    "label": "what the model shall answer",
    "split": "train, validation, test, unlabelled, or excluded (its groups fall in different splits)",
    "groups": "JSON object: group column to value; a group is on one side of a split only",
    **{f"{m}_id": f"joins the tables of clean {m} items and their features" for m in MODALITIES},
    **{f"{m}_item": "joins the manifest" for m in MODALITIES},
    **{f"{m}_more": f"the further {m} items and contents, in order, where a sample has several" for m in MODALITIES},
    **{f"{m}_views": f"of which view each {m} is, the first one first, where views have names" for m in MODALITIES},
    **{
        f"{m}_status": "present, incomplete (not all of several), absent (never given), not_found (a link to nothing) "
        "or quarantined"
        for m in MODALITIES
    },
    **{
        f"{m}_pool": f"training draws the row's {m} anew in each epoch, from the rows of the same pool; null: it stays"
        for m in MODALITIES
    },
}


def column_words(table: str, schema: pa.Schema) -> dict[str, str | None]:
    """Column -> what it means, where that is known."""
    of = next((m for m in MODALITIES if table in (f"clean_{m}", f"{m}_features")), None)
    words: dict[str, str] = COLUMN_WORDS | ({} if of is None else dict(_CLASSES[of].column_words))
    for field in schema:
        if pa.types.is_binary(field.type) and f"{field.name}_shape" in schema.names:
            words |= {field.name: "a tensor: its bytes in C order", f"{field.name}_shape": "shape of that tensor"}
        elif field.name.endswith(LOSS):
            words[field.name] = "of that tensor by compression: relative error, mean cosine, and bytes that it had"
    return {name: words.get(name) for name in schema.names}


FEATURE_TABLES = tuple(f"{m}_features" for m in MODALITIES)
TABLES: dict[str, pa.Schema] = {
    "manifest": MANIFEST,
    "quarantine": QUARANTINE,
    **{f"clean_{m}": CLEAN[m] for m in MODALITIES},
    "measurements": MEASUREMENTS,
    "steps": STEPS,
    "signatures": SIGNATURES,
    "near_duplicates": NEAR_DUPLICATES,
    "embeddings": EMBEDDINGS,
    "fits": FITS,
    **{f"{m}_features": FEATURES[m] for m in MODALITIES},
    "samples": SAMPLES,
    "dataset": DATASET,
    "snapshots": SNAPSHOTS,
    "answers": ANSWERS,
    "answer_inputs": ANSWER_INPUTS,
    "feedback": FEEDBACK,
    "preferences": PREFERENCES,
}
# Written anew when they change, so that their versions say what was. Rows of the others never change: what of them a
# snapshot is made of is found in the newest version, too.
INDEX_TABLES = ("manifest", "quarantine", "near_duplicates", "samples", "dataset")


def features_table(modality: str, dtypes: Mapping[str, str | None], rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Feature rows whose tensors are still arrays, as the table that keeps them (`features_schema`).

    Args:
        dtypes: name of each tensor -> its NumPy dtype (`FeatureSettings.stored`); None: a loss.
        rows: id, fingerprint, the modality's own columns, and the tensors; those that a row lacks are null.
    """
    columns = []
    for field in features_schema(modality, dtypes):
        name = field.name.removesuffix("_shape")
        if (dtype := dtypes.get(field.name)) is not None:
            columns.append(_bytes([row.get(field.name) for row in rows], dtype))
        elif name != field.name and name in dtypes:
            columns.append(pa.array([row[name].shape if name in row else None for row in rows], field.type))
        else:
            columns.append(pa.array([row.get(field.name) for row in rows], field.type))
    return pa.table(columns, features_schema(modality, dtypes))


def _bytes(tensors: Sequence[np.ndarray | None], dtype: str) -> pa.Array:
    """A binary column of tensors in C order, copied once."""
    nothing = np.zeros(0, dtype)
    flat = [nothing if tensor is None else np.ascontiguousarray(tensor, dtype).reshape(-1) for tensor in tensors]
    ends, is_there = np.cumsum([0, *(tensor.nbytes for tensor in flat)]), [tensor is not None for tensor in tensors]
    if not flat or ends[-1] > np.iinfo(np.int32).max:  # Arrow makes several arrays of it
        return pa.array([t.tobytes() if there else None for t, there in zip(flat, is_there, strict=True)], pa.binary())
    valid = None if all(is_there) else pa.py_buffer(np.packbits(is_there, bitorder="little").tobytes())
    buffers = [valid, pa.py_buffer(ends.astype(np.int32)), pa.py_buffer(np.concatenate(flat))]
    return pa.Array.from_buffers(pa.binary(), len(flat), buffers)


def tensor(row: Mapping[str, Any], name: str, dtype: str) -> np.ndarray:
    """The tensor `name` of a row of a feature table (read-only: it shares the row's bytes)."""
    return np.frombuffer(row[name], dtype=dtype).reshape(row[f"{name}_shape"])


def subset_name(modalities: Any) -> str:
    """Canonical name of a set of modalities: ``text+image``."""
    return "+".join(m for m in MODALITIES if m in modalities)


def subsets(modalities: Iterable[str]) -> list[tuple[str, ...]]:
    """Every non-empty subset, the smallest first: what a model may be given."""
    given = set(modalities)
    ordered = [m for m in MODALITIES if m in given]
    return [chosen for size in range(1, len(ordered) + 1) for chosen in combinations(ordered, size)]


def fingerprint(*parts: Any) -> str:
    """16 hex digits that name a step, its settings and versions: SHA-256 of their canonical JSON."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
