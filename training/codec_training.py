"""Codecs of the contents that models answer with: each trained in an MLflow run of its own, known by its fingerprint,
and fetched from there by the trainings that follow."""

import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.compute as pc

from training.codecs.options import Source
from training.likeness import likenesses
from training.records import CodecReport
from training.runs import download, find_run, read_json
from training.spec import CodecSpec, JobSpec
from training.workers import Log

if TYPE_CHECKING:
    from training.codecs.base import Codec
    from training.data import SampleDataset

REPORT = "codec.json"
_FOLDER = "codec"
_SHOWN = 8  # contents in the picture


def find_codec(uri: str, project: str, fingerprint: str) -> CodecReport | None:
    """What a codec that is there already came to; None where it has to be trained."""
    run_id = find_run(uri, project, fingerprint)
    return None if run_id is None else CodecReport(**read_json(uri, run_id, REPORT))


def train_codec(spec: JobSpec, codec: CodecSpec, rows: Mapping[str, "SampleDataset"], log: Log) -> CodecReport:
    """Trains a codec on the contents of the training rows, and logs it with what becomes of those of the test rows."""
    import mlflow

    from training.codecs.base import make_codec, save_codec
    from training.tracking import open_part_run

    source, started = Source.of(spec.features, codec.modality), time.monotonic()
    contents = contents_of(rows["train"], codec.modality, source)
    made = make_codec(codec.codec, source, codec.modality)
    made.fit(list(contents.values()), lambda words: log(f"{codec.name}: {words}"))
    seen = contents_of(rows["test"], codec.modality, source) or contents
    held_out = list(seen.values())
    coded = made.encode(held_out)
    again = made.decode(coded)
    alike = (likenesses(held_out, source) * likenesses(again, source)).sum(1)
    report = CodecReport(
        name=codec.name,
        fingerprint=codec.fingerprint,
        mlflow_run_id="",
        contents=len(contents),
        codes=made.alphabet.codes,
        length=float(np.mean([len(codes) for codes in coded])),
        likeness=float(alike.mean()),
        seconds=round(time.monotonic() - started, 2),
    )
    with open_part_run(spec, codec.name, codec.fingerprint) as active:
        report = CodecReport(**(report.to_json() | {"mlflow_run_id": active.info.run_id}))
        mlflow.log_metrics({"test_likeness": report.likeness, "codes": report.codes, "length": report.length})
        with tempfile.TemporaryDirectory() as folder:
            save_codec(made, codec.codec, source, codec.modality, Path(folder))
            mlflow.log_artifacts(folder, _FOLDER)
        picture = reconstructions(spec, codec.modality, source, held_out[:_SHOWN], again[:_SHOWN])
        mlflow.log_image(picture, "reconstructions.png")
        mlflow.log_dict(report.to_json(), REPORT)
    return report


def reconstructions(
    spec: JobSpec, modality: str, source: Source, contents: Sequence[np.ndarray], again: Sequence[np.ndarray]
) -> np.ndarray:
    """Some contents above, and what the codec makes of them below: uint8 (H, W, 3)."""
    import cv2

    def drawn(content: np.ndarray) -> np.ndarray:
        if source.size:
            pixels = spec.features.modality(modality).draw(content)
        else:
            (small,) = likenesses([content], source)
            pixels = spec.features.modality(modality).draw(small.reshape(-1, 40))
        pixels = pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, 2)
        return np.asarray(cv2.resize(pixels, (128, 128), interpolation=cv2.INTER_AREA))

    return np.vstack([np.hstack([drawn(content) for content in row]) for row in (contents, again)])


def fetch_codecs(spec: JobSpec) -> "dict[str, Codec]":
    """Modality -> codec. Raises ValueError: one has not been trained."""
    from training.codecs.base import load_codec

    codecs = {}
    for codec in spec.codecs:
        run_id = find_run(spec.tracking_uri, spec.project, codec.fingerprint)
        if run_id is None:
            raise ValueError(f"{codec.name} of the present dataset has not been trained: materialize it first")
        with tempfile.TemporaryDirectory() as folder:
            codecs[codec.modality] = load_codec(download(spec.tracking_uri, run_id, _FOLDER, folder))
    return codecs


def coded(codecs: "Mapping[str, Codec]", rows: Sequence["SampleDataset"]) -> dict[str, dict[str, np.ndarray]]:
    """Modality -> content -> its codes, of all that these rows have."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for modality, codec in codecs.items():
        contents = {i: c for part in rows for i, c in contents_of(part, modality, codec.source).items()}
        found[modality] = dict(zip(contents, codec.encode(list(contents.values())), strict=True))
    return found


def contents_of(rows: "SampleDataset", modality: str, source: Source) -> dict[str, np.ndarray]:
    """The tensor that a codec reads, of each content of the labelled rows; in the order of their ids."""
    index = rows.index.filter(rows.index["label"].is_valid())
    ids = sorted(pc.unique(index[f"{modality}_id"]).drop_null().to_pylist())
    return dict(zip(ids, rows.tensors(modality, source.tensor, ids), strict=True))
