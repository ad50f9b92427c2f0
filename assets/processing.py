"""One pass over items: each is decoded once and gives its clean row and its feature row, or the row that says why not.

Pure Arrow to Arrow; reading the bytes (`sources.attach_data`) and writing the tables is the caller's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from training.language import CleanText
from training.media import Image, MediaError, Speech
from training.processor import Processor
from training.schema import CLEAN, FEATURES, QUARANTINE, tensor_columns

_PLACE = ("item_id", "source", "uri", "member", "row", "sha256")


class Outcome(NamedTuple):
    """What became of `items` input rows: each is in the table of every step it needed, or in quarantine."""

    items: int
    clean: pa.Table
    features: pa.Table
    quarantine: pa.Table


@dataclass(frozen=True)
class Step:
    """Cleaning and featurizing of one modality, as a function from a batch to its `Outcome` that can be pickled."""

    modality: str
    processor: Processor

    def __call__(self, batch: pa.RecordBatch) -> Outcome:
        """`batch` has MANIFEST's columns, `data` (media bytes; for text its UTF-8), `need_clean`, `need_features`.

        Content that cannot be used goes to quarantine under the fingerprint of the step that refused it, so that it
        is not tried again. Where `data` is null the file could not be read (`data_error` says why): the quarantine
        row has no fingerprint, since another run may find the file.

        Raises:
            RuntimeError: an item that raised anything but MediaError; the message names it.
        """
        clean: list[dict[str, Any]] = []
        features: list[dict[str, Any]] = []
        quarantine: list[dict[str, Any]] = []
        clean_step, feature_step = (
            self.processor.clean_fingerprint(self.modality),
            self.processor.fingerprint(self.modality),
        )
        for row in range(batch.num_rows):
            (item,) = batch.slice(row, 1).to_pylist()  # one at a time: media are large
            step: str | None = clean_step if item["need_clean"] else feature_step
            try:
                if item["data"] is None:
                    step = None
                    raise MediaError("unreadable", item.get("data_error") or "the file came without its content")
                decoded, columns = decode(item, self.modality, self.processor)
                if item["need_clean"]:
                    clean.append(
                        {"id": item["sha256"], "parent_id": item["sha256"], "fingerprint": clean_step, **columns}
                    )
                step = feature_step
                if item["need_features"]:
                    tensors = featurize(decoded, self.processor)
                    features.append({"id": item["sha256"], "fingerprint": feature_step, **tensors})
            except MediaError as error:
                stage = "featurize" if step == feature_step else "clean"
                quarantine.append(_refused(item, self.modality, stage, step, error))
            except Exception as error:  # a fault of the code, not known of the item: no reason to refuse it for good
                raise RuntimeError(f"{place(item)}: {type(error).__name__}: {error}") from error
        _check_balance(batch, clean, features, quarantine)
        return Outcome(
            batch.num_rows,
            pa.Table.from_pylist(clean, CLEAN[self.modality]),
            pa.Table.from_pylist(features, FEATURES[self.modality]),
            pa.Table.from_pylist(quarantine, QUARANTINE),
        )


def decode(
    item: dict[str, Any], modality: str, processor: Processor
) -> tuple[Image | Speech | CleanText, dict[str, Any]]:
    """The decoded content and its columns of the clean table. Raises MediaError."""
    if modality == "text":
        text = processor.decode_text(item["data"].decode())
        return text, _columns(text, ("text", "language", "words", "content_words", "warnings"))
    name = item["member"] or item["uri"]
    if modality == "image":
        image = processor.decode_image(item["data"], name)
        return image, _columns(image, ("format", "mode", "width", "height", "warnings"))
    speech = processor.decode_speech(item["data"], name)
    columns = _columns(speech, ("format", "sample_rate", "channels", "frames", "seconds", "warnings"))
    columns["rms"] = float(np.sqrt(np.mean(np.square(speech.waveform, dtype=np.float64))))
    if speech.seconds > (most := processor.features.speech.max_seconds):
        columns["warnings"] += (f"{speech.seconds:.2f} s, features cover at most {most:g} s (max_seconds)",)
    return speech, columns


def featurize(decoded: Image | Speech | CleanText, processor: Processor) -> dict[str, Any]:
    """The columns of the feature table. Raises MediaError."""
    match decoded:
        case CleanText():
            return {"text": decoded.text, **tensor_columns(processor.text_tensors(decoded))}
        case Image():
            return tensor_columns(processor.image_tensors(decoded))
        case Speech():
            return tensor_columns(processor.speech_tensors(decoded))


def place(item: dict[str, Any]) -> str:
    """Where an item comes from, for a person: file, member of the archive, row of the table."""
    where = item["uri"] or item["item_id"]
    where += f"/{item['member']}" if item["member"] else ""
    return where + (f", row {item['row']}" if item["row"] is not None else "")


def _columns(content: Any, names: Sequence[str]) -> dict[str, Any]:
    return {name: getattr(content, name) for name in names}


def _refused(
    item: dict[str, Any], modality: str, stage: str, fingerprint: str | None, error: MediaError
) -> dict[str, Any]:
    return {name: item[name] for name in _PLACE} | {
        "stage": stage,
        "outcome": "quarantined",
        "reason": error.reason,
        "message": f"{place(item)}: {error}",
        "modality": modality,
        "fingerprint": fingerprint,
    }


def _check_balance(
    batch: pa.RecordBatch,
    clean: list[dict[str, Any]],
    features: list[dict[str, Any]],
    quarantine: list[dict[str, Any]],
) -> None:
    """No item disappears: what a step was asked for it made, or it stands in quarantine."""
    refused = {row["item_id"] for row in quarantine}
    done = {"need_clean": {row["id"] for row in clean}, "need_features": {row["id"] for row in features}}
    for need, made in done.items():
        for item_id, sha256, needed in zip(*(batch[n].to_pylist() for n in ("item_id", "sha256", need)), strict=True):
            assert not needed or sha256 in made or item_id in refused, f"{item_id} was lost"
