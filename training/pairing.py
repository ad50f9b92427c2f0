"""Training rows whose contents are drawn anew in each epoch, from those that may stand there (`schema`: X_pool)."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from training.schema import MODALITIES
from training.seeding import generator


class Pairing:
    """Says which row lends a row its content: any of the same pool, each as likely, drawn by (seed, epoch, sample id).

    So a resumed run draws what the undisturbed one would have drawn, and anybody can draw it again (`index`).

    Args:
        index: rows of `schema.DATASET`; only they lend.
    """

    def __init__(self, index: pa.Table, seed: int) -> None:
        self._index, self._seed = index, seed
        self._ids = index["sample_id"].combine_chunks()
        self._pools = {m: _Pools(pools) for m in MODALITIES if (pools := index[f"{m}_pool"]).null_count < len(pools)}

    @property
    def modalities(self) -> tuple[str, ...]:
        """Those of which at least one row has a pool."""
        return tuple(self._pools)

    def lenders(self, epochs: Sequence[int], rows: Sequence[int]) -> dict[str, np.ndarray]:
        """Modality -> the row (R,) that each of the rows has its content from; itself where it has no pool."""
        if not self._pools:
            return {}
        draws = np.array([self._draws(epoch, row) for epoch, row in zip(epochs, rows, strict=True)])
        return {m: pools.lenders(np.asarray(rows), draws[:, MODALITIES.index(m)]) for m, pools in self._pools.items()}

    def _draws(self, epoch: int, row: int) -> np.ndarray:
        """One for each modality there is, so that the pools of one do not move the draws of another."""
        return generator(self._seed, epoch, f"{self._ids[row].as_py()} pairing").random(len(MODALITIES))

    def index(self, epoch: int) -> pa.Table:
        """The rows with the contents that they have in this epoch, which says what a model has seen."""
        table = self._index
        for modality, lenders in self.lenders([epoch] * len(table), range(len(table))).items():
            name = f"{modality}_id"
            table = table.set_column(table.column_names.index(name), name, self._index[name].take(pa.array(lenders)))
        return table


class _Pools:
    """The rows of each pool of one modality, as arrays: `_rows` holds them pool by pool, from `_starts[pool]` on."""

    def __init__(self, names: pa.ChunkedArray) -> None:
        codes = pc.fill_null(names.combine_chunks().dictionary_encode().indices, -1)
        self._pool = codes.to_numpy(zero_copy_only=False).astype(np.int32)  # of each row; -1: none
        order = np.argsort(self._pool, kind="stable").astype(np.int32)
        self._rows = order[np.count_nonzero(self._pool < 0) :]
        self._starts = np.concatenate([[0], np.cumsum(np.bincount(self._pool[self._rows]))])

    def lenders(self, rows: np.ndarray, draws: np.ndarray) -> np.ndarray:
        pools = self._pool[rows]
        starts, ends = self._starts[pools], self._starts[pools + 1]
        drawn = self._rows[np.where(pools >= 0, starts + (draws * (ends - starts)).astype(np.int64), 0)]
        return np.where(pools >= 0, drawn, rows)
