"""Pixels: pictures resized to a square (bilinear; to half and less, the mean of each area).

Shapes: B rows, C channels (1 grey, 3 RGB), H and W pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from training.featurizers.base import FeatureShape, Featurizer
from training.images import Image
from training.validation import FORBID_EXTRA, check

if TYPE_CHECKING:
    from torch import Tensor

_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # Rec. 601


@dataclass(frozen=True, kw_only=True)
class PixelsOptions:
    __pydantic_config__ = FORBID_EXTRA
    size: int = 224  # height and width in pixels
    color: Literal["rgb", "grey"] = "rgb"
    fit: Literal["squash", "crop", "pad"] = "crop"  # how another aspect ratio becomes a square
    mean: float = 0.5  # normalisation of values in [0, 1]; applied when a batch is made
    std: float = 0.5

    def __post_init__(self) -> None:
        check(4 <= self.size <= 4096, "size", self.size, "4 to 4096 pixels")
        check(self.std > 0, "std", self.std, "a positive number")

    @property
    def channels(self) -> int:
        return 3 if self.color == "rgb" else 1


class PixelsFeaturizer(Featurizer):
    form = "grid"
    described = "resized pixels"
    version = 3
    packages = ("opencv-python-headless",)
    read = augmented = "pixels"
    at_batch = ("mean", "std")
    tensors: Mapping[str, str] = {"pixels": "uint8"}
    Options = PixelsOptions

    def __init__(self, options: PixelsOptions) -> None:
        super().__init__(options)
        self.decoded_size = options.size

    def featurize(self, content: Image) -> dict[str, np.ndarray]:
        return {"pixels": image_pixels(content.array, self.options)}

    def shape(self) -> FeatureShape:
        return FeatureShape(self.form, self.options.channels, self.options.size)

    def batch(self, rows: Sequence[np.ndarray | None]) -> "tuple[Tensor, None]":
        """float32 (B, C, H, W), normalised."""
        import torch

        options = self.options
        pixels_BCHW = np.zeros((len(rows), options.channels, options.size, options.size), dtype=np.float32)
        for n, pixels_CHW in enumerate(rows):
            if pixels_CHW is not None:
                pixels_BCHW[n] = pixels_CHW
        return torch.from_numpy(pixels_BCHW).div_(255).sub_(options.mean).div_(options.std), None

    def augmenter(self, settings: Any, noise: Sequence[np.ndarray]) -> Any:
        from training.augmentation import augment_image

        return partial(augment_image, settings=settings)


def image_pixels(array: np.ndarray, settings: PixelsOptions) -> np.ndarray:
    """uint8 (H, W, 3) to uint8 (C, size, size): the middle square (crop), all squeezed (squash) or all on black (pad).

    Bilinear, or the mean of each area where the picture shrinks to half or less; grey is Rec. 601 luma.
    """
    import cv2

    cv2.setNumThreads(1)  # the engine's workers are the parallelism
    size = settings.size
    height, width = array.shape[:2]
    if settings.fit == "crop":  # before resizing: a strip of 1 x 100,000 pixels must not grow to a giant
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        array, height, width = array[top : top + side, left : left + side], side, side
    longest = max(height, width) if settings.fit == "pad" else None
    shape = [max(1, round(size * length / (longest or length))) for length in (height, width)]
    pixels_HWC = array
    if shape != [height, width]:
        # Where every pixel counts anyway, plain bilinear does; it works in integers, alike on every x86-64 machine.
        smaller = shape[0] * 2 <= height or shape[1] * 2 <= width
        method = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
        pixels_HWC = cv2.resize(array, shape[::-1], interpolation=method)
    if settings.color == "grey":
        pixels_HWC = np.round(pixels_HWC @ _LUMA).astype(np.uint8)[..., None]
    empty = np.empty if shape == [size, size] else np.zeros
    square_CHW = empty((settings.channels, size, size), dtype=np.uint8)
    top, left = (size - shape[0]) // 2, (size - shape[1]) // 2
    rows, columns = slice(top, top + shape[0]), slice(left, left + shape[1])
    cv2.split(pixels_HWC, [square_HW[rows, columns] for square_HW in square_CHW])
    return square_CHW
