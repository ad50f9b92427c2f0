"""The contract of a featurizer: clean content to the tensors that are stored, and those of many rows to a batch.

Importing a kind needs no torch: the data side computes fingerprints without it.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from training.media import MediaError

if TYPE_CHECKING:
    from torch import Tensor

    from training.modalities.base import Modality


@dataclass(frozen=True)
class FeatureShape:
    """What an encoder must know of its input before it sees any.

    form: grid    pictures (B, width, size, size)
          frames  sequences of vectors (B, F, width) with a mask (B, F)
          ids     token ids (B, S) below `width`, with a mask (B, S)
          symbols ids of another alphabet, which no language model knows, likewise
          vectors what another model made of the content (B, S, width), with a mask (B, S)
          counts  column below `width` and count of the K terms of a row (B, K, 2), with a mask (B, K)
    """

    form: str
    width: int  # channels of a picture, features of a frame, size of the vocabulary
    size: int = 0  # height and width of a picture, in pixels


class Featurizer(ABC):
    """A kind of features of one modality. Its options are a frozen dataclass `Options`, and `self.options`.

    `tensors` are stored, keyed by content and by a fingerprint of everything that decides them; `read` is the one that
    the encoder gets. Options in `at_batch` act only when a batch is made: changing them computes nothing anew. What
    `augmented` depends on, `read` depends on too: it is made of it.
    """

    form: ClassVar[str]  # of FeatureShape
    described: ClassVar[str]  # for a person
    version: ClassVar[int]  # count up when the tensors of the same content change; the golden test fails until then
    packages: tuple[str, ...] = ()  # whose versions decide the tensors
    read: ClassVar[str]
    augmented: ClassVar[str | None] = None  # the tensor that augmentation makes `read` of; None: of all columns
    beside: tuple[str, ...] = ()  # tensors that augmentation reads beside it
    at_batch: ClassVar[tuple[str, ...]] = ()
    # Tensor -> options that do not change it, of each tensor that not all options decide: `make` then makes it alone.
    unaffected_by: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    located: ClassVar[tuple[str, ...]] = ()  # options that name models or files, which `identity` knows by content
    for_training: ClassVar[tuple[str, ...]] = ()  # options of what training alone reads: a served model has none of it
    recipe: ClassVar[str | None] = None  # kinds of the same recipe store the same tensors; default: the class's own
    decoded_size: int | None = None  # the short side in pixels that is needed of a picture
    prompt_tokens = 512  # of a text, that a language model reads
    runs_model: bool = False  # it runs a network, which leaves Python while it works
    mixes: ClassVar[bool] = True  # the mean of what `batch` gives of two contents lies between them, if their form does
    at_once: int = 0  # bytes of contents that are decoded first and featurized together; 0: each alone

    def __init__(self, options: Any = None) -> None:
        self.options = options

    @classmethod
    def stand_in(cls, modality: str, options: Any) -> "Modality | None":
        """What decodes and cleans the items of the modality of that name in its place, where these features are not
        made of its own media; None: the modality itself does."""
        return None

    @property
    @abstractmethod
    def tensors(self) -> Mapping[str, str]:
        """Name of each stored tensor -> its NumPy dtype."""

    @abstractmethod
    def featurize(self, content: Any) -> dict[str, np.ndarray]:
        """The tensors of a content. Raises MediaError where it cannot have any."""

    def featurize_all(self, contents: Sequence[Any]) -> "Sequence[dict[str, np.ndarray] | MediaError]":
        """Of several contents at once, each as `featurize` gives it alone; a MediaError where one cannot have any.

        A kind whose calls cost more than their work, or that runs a model, does better than one after the other: it
        says so by `at_once`.
        """
        return [_tensors_or_error(self, content) for content in contents]

    def make(self, tensors: Collection[str], contents: Sequence[Any]) -> "Sequence[dict[str, np.ndarray] | MediaError]":
        """`featurize_all`, where only some tensors are asked for: at least these."""
        return self.featurize_all(contents)

    def most_workers(self) -> int | None:
        """So many threads at most are of use; None: as many as there are cores."""
        return None

    def prepare(self) -> None:  # noqa: B027
        """Loads what featurizing needs, before workers start. Raises ValueError where it is not there."""

    @abstractmethod
    def shape(self) -> FeatureShape:
        """Of what `batch` gives."""

    @abstractmethod
    def batch(self, rows: Sequence[np.ndarray | None]) -> "tuple[Tensor, Tensor | None]":
        """Tensors `read` of some rows (None: it is not there) to values in their form, and a mask that is true where
        they are real, if the form has one."""

    def augmenter(self, settings: Any, noise: Sequence[np.ndarray]) -> Any:
        """What changes the tensor `augmented` of a training row, as a function of it and a random generator.

        Args:
            settings: of `training.augmentation` for the modality.
            noise: waveforms that may be added.

        Raises:
            ValueError: these features cannot be augmented.
        """
        raise ValueError(f"{type(self).__name__} cannot be augmented: leave its modality out of training.augmentation")

    def identity(self) -> Any:
        """What a fingerprint knows of the `located` options: the content of their files, wherever they lie."""
        return None

    def cut(self) -> tuple[str, str] | None:
        """An SQL condition over the rows of clean and feature table that are used in part, and what to say of them."""
        return None

    def save(self, folder: Path) -> None:  # noqa: B027 - most kinds have none
        """Writes the files that `restore` needs on another machine, if any, into an empty folder."""

    def restore(self, folder: Path) -> None:  # noqa: B027
        """Takes the files of `save` in place of those that the options name."""


def _tensors_or_error(featurizer: Featurizer, content: Any) -> dict[str, np.ndarray] | MediaError:
    try:
        return featurizer.featurize(content)
    except MediaError as error:
        return error
