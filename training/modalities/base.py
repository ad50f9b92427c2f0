"""The contract of a modality: how its items are decoded, cleaned, measured and shown."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from training.settings import MediaLimits


class Modality(ABC):
    """One modality. Only its own file knows what its items are; all else asks this object.

    A modality with settings of its own for cleaning says them as `Options`, a frozen dataclass; the project file has
    them among its features. Objects are cheap to make and can be pickled.
    """

    name: ClassVar[str]
    described: ClassVar[str]  # what a clean item is, for a person
    version: ClassVar[int]  # count up when the clean row of the same bytes changes; the golden test fails until then
    packages: ClassVar[tuple[str, ...]]  # whose versions decide clean rows
    columns: ClassVar[Mapping[str, pa.DataType]]  # of the clean table, beside the keys and `warnings`
    # Suffix of a file's name -> what the column `format` may say of such a file; another format is worth a warning.
    suffixes: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    extra: ClassVar[Mapping[str, pa.DataType]] = {}  # of the feature table, beside the keys and the tensors
    limits: ClassVar[Mapping[str, str]]  # field of MediaLimits -> SQL over the clean table for what it limits
    default_featurizer: ClassVar[str]
    is_text: ClassVar[bool] = False  # items are texts, which tables hold and language models read
    as_string: ClassVar[bool] = False  # tables and requests hold its items themselves: no file names, no base64
    in_python: ClassVar[bool] = False  # its steps work in Python itself most of the time: threads would wait
    can_be_cut: ClassVar[bool] = False  # `part`, `encode` and what stands here are there
    place: ClassVar[tuple[str, ...]] = ()  # of `columns`: where in its item a part lies
    decoded_bytes: ClassVar[str] = ""  # SQL over the clean table: what a content takes
    takes_noise: ClassVar[bool] = False  # a source may bring clips that augmentation adds
    picture: ClassVar[str | None] = None  # the tensor that a picture of a sample shows, if there is one
    picture_title: ClassVar[str] = ""
    column_words: ClassVar[Mapping[str, str]] = {}  # what `columns` and `extra` mean, where a name does not say it
    media_type: ClassVar[str] = "*/*"  # of its files, as a browser chooses them: image/*
    file_suffixes: ClassVar[tuple[str, ...]] = ()  # of files that are most likely its items, for a first proposal

    grid: ClassVar[tuple[int, int]] = (1, 1)  # of its `pieces`, as they lie in `sketch`
    noise_levels: ClassVar[tuple[float, ...]] = ()  # of `noisy`, the worst last; (): there is no noise
    noise_words: ClassVar[str] = ""  # what they are

    # A class whose rows can be augmented says how far as `Augmentation`, a frozen dataclass (`Featurizer.augmenter`).

    def __init__(self, options: Any = None) -> None:
        self.options = options

    @abstractmethod
    def decode(self, data: bytes, limits: MediaLimits, size: int | None = None) -> Any:
        """The content of an item, cleaned.

        Args:
            data: bytes of the file; of a text its UTF-8.
            size: what the features need of it at most (`Featurizer.decoded_size`); more may be left out early. None
                where parts are cut out of it.

        Raises:
            MediaError: it cannot be used; the reason is a code, the message for a person.
        """

    @abstractmethod
    def describe(self, content: Any) -> dict[str, Any]:
        """The clean row of a content: `columns` and `warnings`."""

    def part(self, content: Any, cut: str) -> Any:
        """The part of a content that a cut names: of a recording a stretch of it (`training.spans`), of a
        picture a crop (`training.crops`).

        Raises:
            MediaError: the content has no such part.
            ValueError: the cut is none.
        """
        raise NotImplementedError

    def cut_of(self, row: Mapping[str, Any]) -> str:
        """The cut that gives a part anew. Args: `row` has `cut` and `place` of the clean table."""
        return row["cut"]

    def where(self, place: Mapping[str, Any]) -> str:
        """Which part of its item one is, in words. Args: `place` has the columns of that name."""
        raise NotImplementedError

    def encode(self, content: Any) -> bytes:
        """A file that `decode` reads as this content, so that a part can be given to a model from outside."""
        raise NotImplementedError

    def extras(self, content: Any) -> dict[str, Any]:
        """The columns `extra` of the feature row."""
        return {}

    def nbytes(self, content: Any) -> int | None:
        """Bytes of memory that a content takes, so that not too many are held to be featurized at once; None: nobody
        knows, and each is featurized alone."""
        return None

    @abstractmethod
    def example(self) -> bytes:
        """A small item, as the bytes of a file; of a text its UTF-8."""

    def identity(self) -> Any:
        """What a fingerprint of clean rows must know beside options, version and packages."""
        return None

    @property
    def counted(self) -> Mapping[str, str]:
        """What people are told how much of it there is -> SQL over the clean table, summed over its rows."""
        return {}

    @property
    def raw_type(self) -> pa.DataType:
        """Of an item as it comes, in a table of raw rows."""
        return pa.large_string() if self.is_text else pa.large_binary()

    def sketch(self, content: Any) -> np.ndarray | str | None:
        """What a person is shown of a content: pixels uint8 (H, W, 3) or (H, W), or words; None: there is nothing."""
        return None

    def pieces(self, content: Any) -> list[str]:
        """What can be left out of a content one by one, to see what an answer hangs on: names, of a text its words."""
        return []

    def keeping(self, content: Any, kept: np.ndarray) -> Any:
        """The content with these of its pieces only (P,); None: nothing is left."""
        raise NotImplementedError

    def noisy(self, content: Any, level: float, random: np.random.Generator) -> Any:
        """The content with noise of one of the `noise_levels`."""
        raise NotImplementedError

    def draw(self, tensor: np.ndarray) -> np.ndarray:
        """The tensor `picture` as pixels uint8: (H, W, 3), or (H, W) for what has no colours of its own."""
        raise NotImplementedError

    def laid(self, values: np.ndarray) -> np.ndarray:
        """A value of each place of the tensor `picture`, as `draw` lays it out: (H, W)."""
        raise NotImplementedError

    def axes(self, tensor: np.ndarray) -> tuple[str, str]:
        """What the picture's horizontal and vertical axis are, where that is not plain to see."""
        return "", ""
