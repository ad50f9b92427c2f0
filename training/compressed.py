"""One tensor of a feature table as it is stored smaller (`training.compressions`), and read again.

Its columns are those of the compression's parts, named after the tensor X, and X_compression_loss: relative error (the
norm of what is lost by that of the content), mean cosine of the vectors before and after, and the bytes that X had.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from training.compressions.base import Compression, Fit
from training.family import Choice, identity
from training.schema import LOSS
from training.validation import to_dict

_TINY = 1e-30


@dataclass(frozen=True)
class Compressed:
    """Args: `dtype` is that of the tensor where it is not compressed."""

    name: str
    dtype: str
    kind: str
    compression: Compression

    @property
    def tensors(self) -> dict[str, str]:
        """What is stored, but for the loss: name -> dtype."""
        return {f"{self.name}_{part}": dtype for part, dtype in self.compression.parts.items()}

    @property
    def loss(self) -> str:
        return f"{self.name}{LOSS}"

    @property
    def is_ready(self) -> bool:
        return self.compression.fit is not None or not self.compression.is_fitted

    def identity(self) -> dict[str, Any]:
        """What decides the stored rows beside the features."""
        fit, options = self.compression.fit, self.compression.options
        return {
            "tensor": self.name,
            "kind": identity(Choice(self.kind)),
            "version": self.compression.version,
            "settings": {} if options is None else to_dict(options),
            "fit": None if fit is None else hashlib.sha256(packed(fit)).hexdigest()[:16],
        }

    def check(self, width: int | None) -> None:
        """Raises ValueError: vectors of so many numbers are not for it."""
        self.compression.check(self.dtype, width)

    def compress(self, contents: Sequence[np.ndarray]) -> list[dict[str, Any]]:
        """Of tensors (..., D) the columns `tensors` and `loss` of each."""
        contents = [np.asarray(content, self.dtype) for content in contents]
        if not contents:
            return []
        wide = [content.reshape(-1, content.shape[-1]).astype(np.float64) for content in contents]
        vectors_ND, ends = np.concatenate(wide), np.cumsum([len(vectors) for vectors in wide])[:-1]
        parts = self.compression.compress(vectors_ND)
        again = np.split(self.compression.restore(parts).astype(np.float64), ends)
        split = {name: np.split(part, ends) for name, part in parts.items()}
        return [
            {f"{self.name}_{name}": _shaped(part[n], content) for name, part in split.items()}
            | {self.loss: [*_lost(wide[n], again[n]), content.nbytes]}
            for n, content in enumerate(contents)
        ]

    def restore(self, columns: Mapping[str, Any]) -> dict[str, Any]:
        """The columns of a row with the tensor, float32, in the place of what is stored of it."""
        parts = {part: columns[f"{self.name}_{part}"] for part in self.compression.parts}
        first = next(iter(parts.values()))
        flat = {part: array.reshape(-1, array.shape[-1]) for part, array in parts.items()}
        kept = {name: value for name, value in columns.items() if name not in self.tensors and name != self.loss}
        return kept | {self.name: _shaped(self.compression.restore(flat), first)}


def _shaped(vectors: np.ndarray, like: np.ndarray) -> np.ndarray:
    return vectors.reshape(*like.shape[:-1], vectors.shape[-1])


def _lost(before: np.ndarray, after: np.ndarray) -> tuple[float, float]:
    """Relative error, and mean cosine, of the vectors of a content."""
    norms = [np.linalg.norm(vectors, axis=1) for vectors in (before, after)]
    products, lengths = (before * after).sum(axis=1), norms[0] * norms[1]
    cosines = np.where(lengths > _TINY, products / np.maximum(lengths, _TINY), norms[0] == norms[1])
    lost, whole = np.linalg.norm(before - after), np.linalg.norm(before)
    error = lost / whole if whole > 0 else float(lost > 0)
    return float(error), float(cosines.mean()) if len(cosines) else 1.0


def packed(fit: Fit) -> bytes:
    """As safetensors."""
    from safetensors.numpy import save

    return save({name: np.ascontiguousarray(tensor) for name, tensor in sorted(fit.items())})


def unpacked(content: bytes) -> Fit:
    from safetensors.numpy import load

    return load(content)
