"""What the preprocessing of a Hugging Face encoder makes of a content: the model's own, from its folder, on the CPU.

It is read in two forms: as the tensors of each part that goes through the encoder at once (`inputs`; of many contents,
in `batches`), and as the one
tensor that a feature table keeps of all parts (`stored`), from which an encoder in the model makes the same tensors
(`training.encoders.huggingface`) with the `facts`.

Shapes: C channels, H and W pixels, S tokens or samples, F rows over time, M numbers of a row.
"""

import contextlib
import functools
import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from training.featurizers.base import FeatureShape
from training.spectra import resample

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SPEECH_INPUTS = ("input_features", "input_values")  # names of the tensor that an encoder of speech reads
_SECONDS = 30.0  # of speech that go through an encoder at once, if it does not say
_STEP_SECONDS = 0.5  # lengths of speech are rounded up to a multiple: few lengths make large batches
_LONGEST_TEXT = 512  # tokens that go through an encoder at once, if it does not say


class Input(NamedTuple):
    """A part of a content that goes through the encoder at once."""

    tensors: dict[str, "Tensor"]  # what the model takes, a batch of one
    real: float  # share of the positions that are not padding, from the start


class Batch(NamedTuple):
    """Inputs of one shape, which go through the encoder together."""

    parts: list[tuple[int, int]]  # content, and number of the part in it, of each input
    tensors: dict[str, "Tensor"]
    real: list[float]


class Preprocessing(ABC):
    what: ClassVar[str]  # that it reads, for a person

    def __init__(self, folder: Path) -> None:
        """Raises ValueError where the folder has no preprocessing of such contents."""
        self.folder = folder
        with loading(folder, self.what):
            self.own = self.load()

    @abstractmethod
    def load(self) -> Any:
        """The model's own, as transformers reads it."""

    @property
    @abstractmethod
    def example(self) -> Any:
        """A small content."""

    @abstractmethod
    def inputs(self, content: Any) -> Iterator[Input]:
        """A content, in as many parts as the encoder needs to read it whole."""

    def batches(self, contents: Sequence[Any], size: int, device: "torch.device") -> Iterator[Batch]:
        """Contents in batches of `size` inputs of one shape at most, on a device."""
        inputs = [((n, k), part) for n, content in enumerate(contents) for k, part in enumerate(self.inputs(content))]
        return _batched(inputs, size, device)

    @abstractmethod
    def stored(self, content: Any) -> np.ndarray:
        """All parts as one tensor of the form that `shape` says."""

    @abstractmethod
    def shape(self) -> FeatureShape:
        """Of `stored`. Raises ValueError where the encoder cannot stand in the model."""

    def facts(self) -> dict[str, Any]:
        """What must be known to read `stored`, as plain JSON-able values."""
        return {}


class TextPreprocessing(Preprocessing):
    """`stored` are token ids int32 (S,), window behind window; of `size` tokens each but the last."""

    what = "texts"

    def load(self) -> Any:
        from transformers import AutoConfig, AutoTokenizer

        config: Any = AutoConfig.from_pretrained(self.folder, trust_remote_code=False)
        told = getattr(config.get_text_config(), "max_position_embeddings", None) or _LONGEST_TEXT + 2
        tokenizer = AutoTokenizer.from_pretrained(self.folder, trust_remote_code=False)
        self._most = int(min(tokenizer.model_max_length, told - 2))  # some count positions from 2
        return tokenizer

    @property
    def example(self) -> str:
        return "a"

    def inputs(self, content: str) -> Iterator[Input]:
        import torch

        from training.tokenizer import windows

        for ids in windows(self.own, content, self._most):
            ids_BS = torch.tensor([ids or [self._pad]])  # of a text that cleaning left empty
            yield Input({"input_ids": ids_BS, "attention_mask": torch.ones_like(ids_BS)}, 1.0)

    def stored(self, content: str) -> np.ndarray:
        return np.concatenate([part.tensors["input_ids"][0].numpy() for part in self.inputs(content)]).astype(np.int32)

    def shape(self) -> FeatureShape:
        from training.tokenizer import window_length

        return FeatureShape("ids", len(self.own), window_length(self.own, self._most))

    def facts(self) -> dict[str, Any]:
        return {"pad": self._pad}

    @property
    def _pad(self) -> int:
        return int(self.own.pad_token_id or 0)


def _slices(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _batched(inputs: Iterable[tuple[tuple[int, int], Input]], size: int, device: "torch.device") -> Iterator[Batch]:
    import torch

    alike: dict[Any, list[tuple[tuple[int, int], Input]]] = {}
    for named in inputs:
        shapes = tuple((name, tuple(tensor.shape)) for name, tensor in sorted(named[1].tensors.items()))
        alike.setdefault(shapes, []).append(named)
    for group in alike.values():
        for some in _slices(group, size):
            names, tensors = [name for name, _ in some], [part.tensors for _, part in some]
            joined = {name: torch.cat([of[name] for of in tensors]).to(device) for name in tensors[0]}
            yield Batch(names, joined, [part.real for _, part in some])


class Picture(NamedTuple):
    pixels: np.ndarray  # uint8 (H, W, 3)
    crop: bool = False  # where the model's preprocessing takes the middle of a picture, that is all that is read


class ImagePreprocessing(Preprocessing):
    """`stored` is uint8 (C, H, W), from the value of black to that of white: what stands between resize and
    normalisation, in a quarter of the bytes."""

    what = "pictures"

    def load(self) -> Any:
        from transformers import AutoImageProcessor

        return AutoImageProcessor.from_pretrained(self.folder, trust_remote_code=False)

    @property
    def example(self) -> Picture:
        return Picture(np.zeros((32, 32, 3), np.uint8))

    def inputs(self, content: Picture) -> Iterator[Input]:
        yield Input({"pixel_values": self._processed(self._whole(content))}, 1.0)

    def batches(self, contents: Sequence[Picture], size: int, device: "torch.device") -> Iterator[Batch]:
        if not self._finishes_apart:
            yield from super().batches(contents, size, device)
            return
        resized = self._resized([self._whole(content) for content in contents])
        inputs = [((n, 0), Input({"pixel_values": pixels_CHW[None]}, 1.0)) for n, pixels_CHW in enumerate(resized)]
        for batch in _batched(inputs, size, device):
            yield batch._replace(tensors={"pixel_values": self._finished(batch.tensors["pixel_values"])})

    def _whole(self, content: Picture) -> np.ndarray:
        """What is preprocessed of a picture."""
        return content.pixels if content.crop or not self._crops else self._squared(content.pixels)

    def _resized(self, pictures: Sequence[np.ndarray]) -> Sequence["Tensor"]:
        """uint8 (C, H, W) of each: a quarter of the bytes that go to a device, where they are normalised."""
        how = {"do_rescale": False, "do_normalize": False, "input_data_format": "channels_last"}
        writable = [np.require(pixels_HWC, requirements="W") for pixels_HWC in pictures]  # torch warns of others
        return self.own(images=writable, **how)["pixel_values"]

    def _finished(self, pixels_BCHW: "Tensor") -> "Tensor":
        own = self.own
        scale, normal = (own.do_rescale, own.rescale_factor), (own.do_normalize, own.image_mean, own.image_std)
        return own.rescale_and_normalize(pixels_BCHW, *scale, *normal)

    @functools.cached_property
    def _finishes_apart(self) -> bool:
        """Whether what is resized may be normalised later, on the device; tried out."""
        pixels_HWC = np.random.default_rng(0).integers(0, 256, (48, 80, 3), np.uint8)
        try:
            finished_CHW = self._finished(self._resized([pixels_HWC])[0][None])[0]
        except (AttributeError, TypeError, ValueError, RuntimeError):  # a preprocessing of another kind
            return False
        return finished_CHW.equal(self._processed(pixels_HWC)[0])

    def stored(self, content: Picture) -> np.ndarray:
        low_C, high_C = self._range
        (part,) = self.inputs(content)
        pixels_CHW = part.tensors["pixel_values"][0].numpy()
        scaled_CHW = (pixels_CHW - low_C[:, None, None]) / (high_C - low_C)[:, None, None]
        return np.round(scaled_CHW * 255).clip(0, 255).astype(np.uint8)

    def shape(self) -> FeatureShape:
        shapes = {self._processed(np.zeros((*size, 3), np.uint8))[0].shape for size in ((40, 40), (40, 90), (90, 40))}
        if len(shapes) > 1 or len(shape := shapes.pop()) != 3 or shape[1] != shape[2]:
            raise ValueError(
                f"model {str(self.folder)!r} makes squares of one size of no picture: it cannot stand in the model; "
                "take features of the kind `embedding`"
            )
        self._check_range()
        return FeatureShape("grid", *shape[:2])

    def facts(self) -> dict[str, Any]:
        low_C, high_C = self._range
        return {"low": low_C.tolist(), "high": high_C.tolist()}

    def _processed(self, pixels_HWC: np.ndarray) -> "Tensor":
        import PIL.Image

        return self.own(images=[PIL.Image.fromarray(pixels_HWC)], return_tensors="pt")["pixel_values"]

    def _squared(self, pixels_HWC: np.ndarray) -> np.ndarray:
        """In the middle of a square of the colour that becomes zero: what a model was normalised by, most often."""
        height, width, _ = pixels_HWC.shape
        if height == width:
            return pixels_HWC
        low_C, high_C = self._range
        side = max(height, width)
        square_HWC = np.empty((side, side, 3), np.uint8)
        square_HWC[:] = np.round(-low_C / np.maximum(high_C - low_C, 1e-6) * 255).clip(0, 255)
        top, left = (side - height) // 2, (side - width) // 2
        square_HWC[top : top + height, left : left + width] = pixels_HWC
        return square_HWC

    @functools.cached_property
    def _crops(self) -> bool:
        """Whether the ends of a long picture are lost; tried out, as each preprocessing says it in its own words."""
        black_HWC = np.zeros((32, 128, 3), np.uint8)
        ends_HWC = black_HWC.copy()
        ends_HWC[:, :16] = ends_HWC[:, -16:] = 255
        return bool((self._processed(black_HWC) == self._processed(ends_HWC)).all())

    @functools.cached_property
    def _range(self) -> tuple[np.ndarray, np.ndarray]:
        """The values of black and of white, by channel."""
        black_CHW, white_CHW = (self._processed(np.full((32, 32, 3), value, np.uint8))[0].numpy() for value in (0, 255))
        return black_CHW.min((1, 2)), white_CHW.max((1, 2))

    def _check_range(self) -> None:
        """Raises ValueError where a picture becomes something else than resized and normalised pixels."""
        (low_C, high_C), random = self._range, np.random.default_rng(0)
        pixels_CHW = self._processed(random.integers(0, 256, (64, 64, 3), np.uint8))[0].numpy()
        slack_C = 0.01 * (high_C - low_C)
        within = (pixels_CHW.min((1, 2)) >= low_C - slack_C) & (pixels_CHW.max((1, 2)) <= high_C + slack_C)
        if not (within & (high_C > low_C)).all():
            raise ValueError(
                f"model {str(self.folder)!r} does more to a picture than to resize and normalise it: it cannot stand "
                "in the model; take features of the kind `embedding`"
            )


class Recording(NamedTuple):
    waveform: np.ndarray  # float32 (samples,)
    rate: int  # Hz
    pad: bool = False  # with silence, to what the encoder reads at once


class SpeechPreprocessing(Preprocessing):
    """`stored` is float16 (F, M + 1): what the encoder reads over time (frames of a spectrum; samples, some in a row),
    part behind part, `size` rows each but the last; the last number of a row counts what of it is no padding."""

    what = "speech"

    def load(self) -> Any:
        from transformers import AutoFeatureExtractor

        extractor = AutoFeatureExtractor.from_pretrained(self.folder, trust_remote_code=False)
        if not getattr(extractor, "sampling_rate", None):
            raise ValueError(f"its preprocessing ({type(extractor).__name__}) knows no sampling rate")
        return extractor

    @property
    def rate(self) -> int:
        """Hz, of the waveforms that the encoder was trained on."""
        return int(self.own.sampling_rate)

    @functools.cached_property
    def is_spectrum(self) -> bool:
        """Whether the encoder reads frames of several bands, and not the waveform itself."""
        name, _ = self._read
        return next(self.inputs(self.example)).tensors[name].ndim > 2

    @property
    def example(self) -> Recording:
        return Recording(np.zeros(8000, np.float32), 16_000)

    def inputs(self, content: Recording) -> Iterator[Input]:
        for waveform, padded in self._windows(content):
            yield Input(self._made([waveform], padded), self._real(waveform, padded))

    def batches(self, contents: Sequence[Recording], size: int, device: "torch.device") -> Iterator[Batch]:
        if self._fixed:
            yield from super().batches(contents, size, device)
            return
        alike: dict[int, list[tuple[tuple[int, int], np.ndarray]]] = {}
        for n, content in enumerate(contents):
            for number, (waveform, padded) in enumerate(self._windows(content)):
                alike.setdefault(padded, []).append(((n, number), waveform))
        on = {"device": device} if "device" in inspect.signature(self.own.__call__).parameters else {}
        for padded, group in alike.items():
            for some in _slices(group, size):
                made = self._made([waveform for _, waveform in some], padded, **on)
                tensors = {name: tensor.to(device) for name, tensor in made.items()}
                yield Batch([name for name, _ in some], tensors, [self._real(wave, padded) for _, wave in some])

    def _windows(self, content: Recording) -> Iterator[tuple[np.ndarray, int]]:
        """What goes through the encoder at once, and the samples to which it is padded."""
        waveform = resample(content.waveform, content.rate, self.rate)
        window = round(self._seconds * self.rate)
        step = window if content.pad else self._step
        for start in range(0, max(1, len(waveform)), window):
            part = waveform[start : start + window]
            yield part, min(window, math.ceil(len(part) / step) * step)

    def _real(self, waveform: np.ndarray, padded: int) -> float:
        return 1.0 if self._fixed else len(waveform) / padded

    def stored(self, content: Recording) -> np.ndarray:
        return np.concatenate([self._rows(part) for part in self.inputs(content)])

    def shape(self) -> FeatureShape:
        whole = self._rows(next(self.inputs(self.example._replace(pad=True))))
        return FeatureShape("frames", whole.shape[1], len(whole))

    def facts(self) -> dict[str, Any]:
        name, axis = self._read
        tensors = next(self.inputs(self.example)).tensors
        shape = list(tensors[name].shape[1:])
        shape[axis - 1] = -1
        longer = bool(tensors["is_longer"].any()) if "is_longer" in tensors else None
        return {"input": name, "shape": shape, "masked": "attention_mask" in tensors, "is_longer": longer}

    def _rows(self, part: Input) -> np.ndarray:
        name, axis = self._read
        read = part.tensors[name][0].movedim(axis - 1, 0).numpy()
        grouped = math.gcd(self._step, 100) if read.ndim == 1 else 1  # samples of a waveform
        rows_FM = read.reshape(len(read) // grouped, -1)
        real = math.ceil(len(read) * part.real - 1e-6)
        counts_F = (real - np.arange(len(rows_FM)) * grouped).clip(0, grouped)
        return np.column_stack([rows_FM, counts_F]).astype(np.float16)

    @functools.cached_property
    def _read(self) -> tuple[str, int]:
        """The name of the tensor that the encoder reads, and which of its axes is time: the one that gets longer."""
        shapes = []
        for steps in (1, 2):
            tensors = next(self.inputs(Recording(np.zeros(steps * self._step, np.float32), self.rate))).tensors
            name = next(name for name in SPEECH_INPUTS if name in tensors)
            shapes.append(tensors[name].shape)
        longer = [axis for axis, (one, two) in enumerate(zip(*shapes, strict=True)) if two > one]
        return name, longer[0] if longer else max(1, len(shapes[0]) - 2)

    @property
    def _step(self) -> int:
        """Samples."""
        return round(_STEP_SECONDS * self.rate)

    def _made(self, waveforms: list[np.ndarray], padded: int, **on: Any) -> dict[str, "Tensor"]:
        how = {} if self._fixed else {"padding": "max_length", "max_length": padded}
        made = self.own(waveforms, sampling_rate=self.rate, return_tensors="pt", **how, **on)
        return {name: made[name] for name in (*SPEECH_INPUTS, "attention_mask", "is_longer") if name in made}

    @functools.cached_property
    def _fixed(self) -> bool:
        """Whether the preprocessing makes the same length of every recording, by repeating it or in its own way."""
        parameters = inspect.signature(self.own.__call__).parameters
        return "padding" not in parameters or hasattr(self.own, "nb_max_samples")

    @functools.cached_property
    def _seconds(self) -> float:
        """What it reads at once."""
        rate, extractor = self.rate, self.own
        if samples := getattr(extractor, "nb_max_samples", None) or getattr(extractor, "n_samples", None):
            return samples / rate
        return extractor.max_length / 100 if self._fixed and hasattr(extractor, "max_length") else _SECONDS


PREPROCESSING: dict[str, type[Preprocessing]] = {
    "text": TextPreprocessing,
    "image": ImagePreprocessing,
    "speech": SpeechPreprocessing,
}


@contextlib.contextmanager
def loading(folder: Path, what: str) -> Iterator[None]:
    """What transformers raises while it reads a folder as one ValueError in plain words; quietly."""
    try:
        with quietly():
            yield
    except (OSError, ValueError, KeyError, TypeError, ImportError, AttributeError) as error:
        why = " ".join(str(error).split())[:300]
        raise ValueError(f"model {str(folder)!r} cannot be loaded as an encoder of {what}: {why}") from error


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """transformers without bars, and without a list of the weights that an encoder does not need."""
    from transformers.utils import logging

    verbosity, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if has_bars:
            logging.enable_progress_bar()
