"""Lists of numbers that another program made, as the items of a modality in the place of its texts, pictures or
recordings: one vector, or a sequence of them.

An item is bytes in one of three forms: a JSON list (of numbers, or of lists of numbers), a NumPy file (.npy), or that
file in base64, which is text and bytes alike: what tables hold becomes this, whatever their format, so that the same
numbers are the same content.

Shapes: N vectors (1 where there is one), D numbers of a vector.
"""

import base64
import io
import json
import math
from typing import Any, ClassVar

import numpy as np

from training.media import MediaError, check_size, decoding
from training.modalities.base import Modality
from training.settings import MediaLimits

_NPY = b"\x93NUMPY"
_BASE64 = base64.b64encode(_NPY)  # six bytes are eight characters, so every such text starts with these
_ADVICE = "write a list of numbers, or a list of such lists that are all of one length"


class VectorModality(Modality):
    """A modality whose items are vectors of `width` numbers: it stands in the place of the modality of that name."""

    described = "vectors, checked for length and finite numbers"
    version = 1
    packages = ("numpy",)
    columns: ClassVar = {}
    limits: ClassVar = {}
    default_featurizer = "vector"
    as_string = True
    media_type = "text/plain"  # a person types the list

    def __init__(self, name: str, width: int) -> None:
        super().__init__(None)
        self.name, self.width = name, width  # type: ignore[misc]

    def decode(self, data: bytes, limits: MediaLimits, size: int | None = None) -> np.ndarray:
        """float32 (N, D). Raises MediaError."""
        check_size(data, limits)
        vectors_ND = decode_vectors(data)
        if vectors_ND.shape[1] != self.width:
            raise MediaError(
                "wrong_length",
                f"holds vectors of {vectors_ND.shape[1]} numbers, expected {self.width} (features.{self.name}.width)",
            )
        return vectors_ND

    def describe(self, content: np.ndarray) -> dict[str, Any]:
        return {"warnings": []}

    def nbytes(self, content: np.ndarray) -> int:
        return content.nbytes

    def example(self) -> bytes:
        """One vector, as JSON."""
        return json.dumps([0.0] * self.width).encode()

    def identity(self) -> Any:
        return "vectors", self.width


def encode_vectors(vectors: np.ndarray) -> str:
    """An array of numbers as the text that tables keep: its .npy (float32) in base64."""
    file = io.BytesIO()
    with np.errstate(over="ignore"):  # what is too large becomes infinite, which decoding refuses
        values = np.ascontiguousarray(vectors, "<f4")
    np.lib.format.write_array(file, values, (1, 0), allow_pickle=False)
    return base64.b64encode(file.getvalue()).decode()


def text_of_cell(cell: str) -> str:
    """The same for a cell of a table, a JSON list; what is none stays as it is, and decoding says what is wrong."""
    try:
        return encode_vectors(_array(json.loads(cell)))
    except (ValueError, RecursionError):
        return cell


def decode_vectors(data: bytes) -> np.ndarray:
    """float32 (N, D), finite; from any of the three forms. Raises MediaError."""
    if data.startswith(_BASE64):
        with decoding("vector"):
            data = base64.b64decode(data, validate=True)
    vectors = _read_npy(data) if data.startswith(_NPY) else _read_json(data)
    if vectors.ndim not in (1, 2):
        raise _malformed(f"holds an array of shape {vectors.shape}")
    if vectors.size == 0:
        raise MediaError("empty", "holds no number: leave it null where there is none")
    with np.errstate(over="ignore"):
        vectors_ND = np.atleast_2d(vectors).astype(np.float32)
    if not np.isfinite(vectors_ND).all():
        vector, number = np.argwhere(~np.isfinite(vectors_ND))[0]
        found = np.atleast_2d(vectors)[vector, number]
        raise _malformed(f"number {number + 1} of vector {vector + 1} is {found}, expected a finite float32")
    return vectors_ND


def _malformed(what: str) -> MediaError:
    return MediaError("malformed", f"{what}: {_ADVICE}")


def _read_npy(data: bytes) -> np.ndarray:
    """Any array of numbers; nothing in the header is believed before the data bear it out."""
    file = io.BytesIO(data)
    with decoding("vector"):
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, by_columns, dtype = read_header(file)
    if dtype.kind not in "fiu":
        raise _malformed(f"holds {dtype}, which are no numbers")
    rest = data[file.tell() :]
    if math.prod(shape) * dtype.itemsize != len(rest):
        raise MediaError("truncated", f"the array of shape {shape} is cut off or damaged: write it again")
    return np.frombuffer(rest, dtype).reshape(shape, order="F" if by_columns else "C")


def _read_json(data: bytes) -> np.ndarray:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise _malformed(f"starts with {data[:20]!r}, which is neither a JSON list nor a NumPy file") from None
    try:
        return _array(value)
    except ValueError as error:
        raise _malformed(str(error)) from None


def _array(value: Any) -> np.ndarray:
    """A list of numbers, or of lists of numbers. Raises ValueError: it is none; the message says why."""
    if not isinstance(value, list):
        raise ValueError(f"holds {_named(value)}")
    is_sequence = bool(value) and isinstance(value[0], list)
    for at, vector in enumerate(value if is_sequence else [value], 1):
        if not isinstance(vector, list):
            raise ValueError(f"vector {at} is {_named(vector)}")
        if len(vector) != len(value[0] if is_sequence else value):
            raise ValueError(f"vector {at} has {len(vector)} numbers, vector 1 has {len(value[0])}")
        for n, number in enumerate(vector, 1):
            if type(number) not in (float, int):
                where = f"number {n}" + (f" of vector {at}" if is_sequence else "")
                raise ValueError(f"{where} is {_named(number)}")
    try:
        return np.asarray(value, np.float64)
    except OverflowError:
        raise ValueError("holds an integer of hundreds of digits") from None


def _named(value: Any) -> str:
    """What a JSON value is, in words."""
    return "a list" if isinstance(value, list) else "an object" if isinstance(value, dict) else json.dumps(value)[:40]
