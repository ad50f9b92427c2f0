"""Where a trained model places the rows that it was trained and tested on, kept beside its run: from an answer to the
training rows that the model takes for the most alike."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:  # who only reads them needs no torch
    from training.data import SampleDataset
    from training.train import Trained, TrainingTask

FILE = "x_m.parquet"  # an artifact of the run
SCHEMA = pa.schema({"sample_id": pa.string(), "split": pa.string(), "x_m": pa.list_(pa.float32())})
_NUMBERS = 16_000_000  # 64 MB, and of a language model 576 wide 27,000 rows; of more training rows some are drawn
_BATCH = 256


def log_x_m(task: "TrainingTask", trained: "Trained", folder: Path) -> None:
    """Writes FILE, of all test rows and the training rows, and logs it with the active run."""
    import mlflow

    width = trained.model.config.llm_width
    train, test = task.train, cast("SampleDataset", task.test)
    if len(train) > (most := max(1, _NUMBERS // width)):
        train = train.take(np.sort(np.random.default_rng(task.training.seed).permutation(len(train))[:most]))
    path = folder / FILE
    with pq.ParquetWriter(path, SCHEMA) as writer:
        for split, rows in (("train", train), ("test", test)):
            for batch in _placed(task, trained, rows):
                names = pa.repeat(pa.scalar(split), len(batch))
                writer.write_table(pa.table([batch["sample_id"], names, batch["x_m"]], schema=SCHEMA))
    mlflow.log_artifact(str(path))


def _placed(task: "TrainingTask", trained: "Trained", rows: "SampleDataset") -> Iterator[pa.Table]:
    from training.collator import make_collator
    from training.trainer import even_batches

    collator, start = make_collator(trained.model, task.tokenizer, task.features, frozenset(task.modalities)), 0
    ids = rows.index["sample_id"]
    for batch in even_batches(rows, collator, _BATCH) if len(rows) else ():
        places = trained.model.pooled_x_m(batch).cpu().tolist()
        yield pa.table({"sample_id": ids.slice(start, len(places)), "x_m": pa.array(places, SCHEMA.field("x_m").type)})
        start += len(places)


def places_by_sample(uri: str, run_id: str, split: str) -> dict[str, np.ndarray]:
    """Sample id -> x_m (D,) of the rows of a split that `log_x_m` has kept of a run.

    Raises:
        ValueError: nothing was kept of it.
    """
    from mlflow.exceptions import MlflowException

    from training.runs import read_artifact

    try:
        rows = pq.read_table(io.BytesIO(read_artifact(uri, run_id, FILE)))
    except (MlflowException, OSError) as error:
        raise ValueError(f"the MLflow run {run_id} has no {FILE}, which says where its model places rows") from error
    return {row["sample_id"]: np.array(row["x_m"], np.float32) for row in rows.to_pylist() if row["split"] == split}


class Places:
    """What `log_x_m` has kept of a run.

    Args:
        content: bytes of FILE.
    """

    def __init__(self, content: bytes) -> None:
        rows = pq.read_table(io.BytesIO(content))
        places = np.stack(rows["x_m"].to_numpy()) if rows.num_rows else np.zeros((0, 1), np.float32)
        self._ids, is_train = rows["sample_id"].to_pylist(), np.array(rows["split"].to_pylist()) == "train"
        self._train = np.flatnonzero(is_train)
        self._places = places / np.maximum(np.linalg.norm(places, axis=1, keepdims=True), 1e-12)
        self.tested = self._places[~is_train]  # of the test rows, each of length 1
        self._at = {name: n for n, name in enumerate(self._ids)}

    def of(self, sample_id: str) -> np.ndarray | None:
        """The place of a row, of length 1."""
        n = self._at.get(sample_id)
        return None if n is None else self._places[n]

    def nearest(self, place: np.ndarray, most: int, but: str | None = None) -> list[tuple[str, float]]:
        """The training rows that lie nearest to a place, and their cosines, the nearest first.

        Args:
            but: a sample that is not to be named.
        """
        if len(place) != self._places.shape[1]:
            return []
        cosines = self._places[self._train] @ (place / max(float(np.linalg.norm(place)), 1e-12))
        found = []
        for n in np.argsort(-cosines, kind="stable")[: most + 1].tolist():
            if (name := self._ids[self._train[n]]) != but:
                found.append((name, round(float(cosines[n]), 4)))
        return found[:most]
