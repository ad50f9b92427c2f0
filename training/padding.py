"""Sequences of different lengths as one tensor and a mask. Shapes: B rows, S positions, F frames, M features."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def padded(sequences: Sequence[Any], fill: int, left: bool = False) -> tuple[Tensor, Tensor]:
    """Token ids int64 (B, S) and a mask bool (B, S) that is true where they are real; S is at least 1."""
    lengths_B = np.array([len(sequence) for sequence in sequences])
    longest = max(1, int(lengths_B.max()))
    at_S = np.arange(longest)
    mask_BS = at_S >= longest - lengths_B[:, None] if left else at_S < lengths_B[:, None]
    ids_BS = np.full(mask_BS.shape, fill, dtype=np.int64)
    ids_BS[mask_BS] = np.concatenate([np.asarray(sequence, np.int64) for sequence in sequences])
    return torch.from_numpy(ids_BS), torch.from_numpy(mask_BS)


def padded_frames(rows: Sequence[np.ndarray | None], width: int | None = None) -> tuple[Tensor, Tensor]:
    """Frames float32 (B, F, M) of rows (F, M) or None, and a mask bool (B, F); F is at least 1.

    Args:
        width: M; default: the rows', so that what made them need not be there (an encoder, a file of vectors).
    """
    if width is None:
        width = next((row.shape[1] for row in rows if row is not None), 1)
    lengths = [0 if frames is None else len(frames) for frames in rows]
    padded_BFM = np.zeros((len(rows), max(1, *lengths), width), dtype=np.float32)
    for n, frames in enumerate(rows):
        if frames is not None:
            padded_BFM[n, : len(frames)] = frames
    return torch.from_numpy(padded_BFM), torch.arange(padded_BFM.shape[1]) < torch.tensor(lengths)[:, None]
