"""Files of word vectors: GloVe (text), fastText and word2vec (text that begins with two numbers, or binary), which is
told by their content; packed by gzip or not.

Their words are in the order of how frequent they are. The first of them are read and held as float16: memory depends on
how many these are, and not on the file.

Shapes: W words, D numbers of a vector.
"""

import functools
import gzip
import hashlib
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

_LONGEST = 2**20  # bytes of a line or word; more is no such file
_KEPT, _WORDS = "vectors.safetensors", "words.txt"


@dataclass(frozen=True)
class WordVectors:
    words: Sequence[str]
    vectors_WD: np.ndarray  # float16
    digest: str  # of the part of the file that they are

    @cached_property
    def _places(self) -> dict[str, int]:
        """Word, as written or else in lower case, -> its row. Of several spellings the most frequent one counts."""
        places: dict[str, int] = {}
        for n, word in enumerate(self.words):
            places.setdefault(word, n)
        for n, word in enumerate(self.words):
            places.setdefault(word.lower(), n)
        return places

    def find(self, words: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The vectors (K, D) of the words that are known, in order, and the places (int32) of those that are not."""
        rows = [self._places.get(word, -1) for word in words]
        unknown = [n for n, row in enumerate(rows) if row < 0]
        return self.vectors_WD[[row for row in rows if row >= 0]], np.array(unknown, np.int32)

    def save(self, folder: Path) -> None:
        from safetensors.numpy import save_file

        save_file({"vectors": self.vectors_WD}, folder / _KEPT, {"digest": self.digest})
        (folder / _WORDS).write_text("\n".join(self.words), encoding="utf-8", newline="\n")


@functools.lru_cache(maxsize=2)
def restore(folder: Path) -> WordVectors:
    """What `WordVectors.save` wrote."""
    from safetensors import safe_open

    with safe_open(folder / _KEPT, "numpy") as file:
        words = (folder / _WORDS).read_text(encoding="utf-8").split("\n")
        return WordVectors(words, file.get_tensor("vectors"), file.metadata()["digest"])


def load(path: str, most: int) -> WordVectors:
    """The first `most` words of a file. Raises ValueError: it is not there, or is none of these."""
    return _load(*_state(path), most)


def digest(path: str, most: int) -> str:
    """Names the part of the file that `load` reads, by its content. Raises ValueError as `load`."""
    return _digest(*_state(path), most)


def width(path: str) -> int:
    """D. Raises ValueError as `load`."""
    return _load(*_state(path), 1).vectors_WD.shape[1]


def _state(path: str) -> tuple[str, int, int]:
    """With what changes when the file does."""
    try:
        stat = Path(path).stat()
    except OSError as error:
        raise ValueError(
            f"file is {path!r}, which cannot be read ({error.strerror}): name one of word vectors"
        ) from None
    return path, stat.st_size, stat.st_mtime_ns


@functools.lru_cache(maxsize=4)
def _digest(path: str, _size: int, _time: int, most: int) -> str:
    whole = hashlib.sha256()
    for entry in _entries(path, most):
        whole.update(entry)
    return whole.hexdigest()


@functools.lru_cache(maxsize=4)
def _load(path: str, size: int, time: int, most: int) -> WordVectors:
    words: list[str] = []
    rows: list[np.ndarray] = []
    width = 0
    for number, entry in enumerate(_entries(path, most), 1):
        width = width or _width(path, entry)
        word, row = _parsed(entry, width)
        if len(row) != width:
            raise _unreadable(path, f"its vector {number} is not a word and {width} numbers")
        words.append(unicodedata.normalize("NFC", word.decode("utf-8", "replace")).replace("\n", " "))
        with np.errstate(over="ignore"):
            rows.append(row.astype(np.float16))
        if not np.isfinite(rows[-1]).all():
            raise _unreadable(path, f"its vector {number} holds a number that is not finite as float16")
    if not rows:
        raise _unreadable(path, "it is empty")
    return WordVectors(words, np.stack(rows), _digest(path, size, time, most))


def _unreadable(path: str, why: str) -> ValueError:
    return ValueError(f"file is {path!r}, and {why}: expected word vectors of GloVe, fastText (.vec) or word2vec")


class _Binary(bytes):
    """A word, a blank, and the numbers as float32."""


def _width(path: str, entry: bytes) -> int:
    """Of the first entry."""
    width = (len(entry) - entry.index(b" ") - 1) // 4 if isinstance(entry, _Binary) else len(entry.split()) - 1
    if width < 1:
        raise _unreadable(path, "its first line has no vector")
    return width


def _parsed(entry: bytes, width: int) -> tuple[bytes, np.ndarray]:
    """Word and vector; one of another length where the entry is none."""
    word, _, rest = entry.partition(b" ")
    if isinstance(entry, _Binary):
        return word, np.frombuffer(rest, "<f4")
    if entry.count(b" ") <= width:  # as most are, and these take a tenth of the time
        try:
            return word, np.fromstring(rest, np.float32, sep=" ")
        except ValueError:
            return word, np.empty(0, np.float32)
    word, *numbers = entry.rsplit(None, width)  # a word may hold blanks
    try:
        return word, np.array(numbers, np.float32)
    except ValueError:
        return word, np.empty(0, np.float32)


def _entries(path: str, most: int) -> Iterator[bytes]:
    """Word and vector of the first `most` words, as they lie there."""
    try:
        with _open(path) as file:
            numbers = file.readline(_LONGEST).split()
            if len(numbers) != 2 or not all(number.isdigit() for number in numbers):
                file.seek(0)
                yield from _lines(file, most)
                return
            count, width = map(int, numbers)
            start = file.tell()
            is_text = _is_text(file.readline(_LONGEST), width)
            file.seek(start)
            yield from _lines(file, min(most, count)) if is_text else _binary(path, file, width, min(most, count))
    except (OSError, EOFError) as error:
        raise _unreadable(path, f"it cannot be read ({error})") from None


def _open(path: str) -> BinaryIO:
    with open(path, "rb") as file:
        is_packed = file.read(2) == b"\x1f\x8b"
    return cast(BinaryIO, gzip.open(path) if is_packed else open(path, "rb"))


def _is_text(line: bytes, width: int) -> bool:
    try:
        return len([float(number) for number in line.split()[-width:]]) == width
    except ValueError:
        return False


def _lines(file: BinaryIO, most: int) -> Iterator[bytes]:
    for _ in range(most):
        if not (line := file.readline(_LONGEST)):
            return
        yield line.rstrip()


def _binary(path: str, file: BinaryIO, width: int, most: int) -> Iterator[_Binary]:
    """A line break may follow each."""
    for number in range(1, most + 1):
        word = bytearray()
        while (character := file.read(1)) != b" ":
            word += character
            if not character or len(word) > _LONGEST:
                raise _unreadable(path, f"it ends or has no word at vector {number}")
        vector = file.read(4 * width)
        if len(vector) < 4 * width:
            raise _unreadable(path, f"it ends in vector {number}")
        yield _Binary(bytes(word).strip() + b" " + vector)
