"""Images: pictures of any common format, upright, in 8-bit RGB (`training.images`)."""

import dataclasses
import io
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import PIL.Image
import pyarrow as pa

from training.crops import Crop
from training.images import Image, decode_image
from training.media import SUFFIX_FORMATS
from training.modalities.base import Modality
from training.settings import ImageAugmentation, MediaLimits

_SKETCH = 320  # pixels of the long side


class ImageModality(Modality):
    name = "image"
    described = "upright, checked for damage, RGB"
    version = 4
    packages = ("pillow", "simplejpeg")
    columns: ClassVar = {
        "format": pa.string(),
        "mode": pa.string(),
        "x": pa.int64(),
        "y": pa.int64(),
        "width": pa.int64(),
        "height": pa.int64(),
    }
    suffixes = SUFFIX_FORMATS
    limits: ClassVar = {"max_pixels": "width * height"}
    default_featurizer = "pixels"
    can_be_cut = True
    place = ("x", "y", "width", "height")
    decoded_bytes = "3 * width * height"
    picture = "pixels"
    Augmentation = ImageAugmentation
    picture_title = "image"
    column_words: ClassVar = {
        "format": "that the content has, whatever the name says",
        "mode": "Pillow's, as stored: RGB, L, P, CMYK, ...",
        "x": "pixels from the left edge of its picture, as it is upright; 0 of a whole one",
        "y": "pixels from the upper edge of its picture, as it is upright; 0 of a whole one",
        "width": "pixels of the upright picture, after EXIF orientation; of a crop its own",
        "height": "pixels of the upright picture, after EXIF orientation; of a crop its own",
    }
    media_type = "image/*"
    grid = (8, 8)
    noise_levels = (16, 32, 64, 128)
    noise_words = "standard deviation of gaussian noise, of 255"
    file_suffixes = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".avif", ".jp2")

    def decode(self, data: bytes, limits: MediaLimits, size: int | None = None) -> Image:
        return decode_image(data, limits, size)

    def describe(self, content: Image) -> dict[str, Any]:
        return {name: getattr(content, name) for name in (*self.columns, "warnings")}

    def cut_of(self, row: Mapping[str, Any]) -> str:
        """By its place, where the cut of the row is what has found it."""
        if row["cut"].startswith("{"):
            return str(row["cut"])
        left, top = row["x"], row["y"]
        return Crop(box=(left, top, left + row["width"], top + row["height"])).cut

    def part(self, content: Image, cut: str) -> Image:
        return content.part(cut)

    def where(self, place: Mapping[str, Any]) -> str:
        return "{width}x{height} pixels from ({x}, {y})".format_map(place)

    def encode(self, content: Image) -> bytes:
        """As PNG of the same pixels."""
        return _png(content.array)

    def nbytes(self, content: Image) -> int:
        return content.array.nbytes

    def example(self) -> bytes:
        """A gradient, as PNG."""
        return _png(np.add.outer(np.arange(32), np.arange(32)).astype(np.uint8) * 4)

    def sketch(self, content: Image) -> np.ndarray:
        picture = PIL.Image.fromarray(content.array)
        picture.thumbnail((_SKETCH, _SKETCH))
        return np.asarray(picture)

    def pieces(self, content: Image) -> list[str]:
        rows, columns = self.grid
        return [f"row {r + 1}, column {c + 1}" for r in range(rows) for c in range(columns)]

    def keeping(self, content: Image, kept: np.ndarray) -> Image:
        """The others have the mean colour of the picture."""
        rows, columns = (np.arange(size) * n // size for size, n in zip(content.array.shape, self.grid, strict=False))
        there = kept.reshape(self.grid)[rows[:, None], columns[None]]
        mean = content.array.mean((0, 1)).astype(np.uint8)
        return dataclasses.replace(content, array=np.where(there[..., None], content.array, mean))

    def noisy(self, content: Image, level: float, random: np.random.Generator) -> Image:
        """Gaussian, of each pixel and colour by itself."""
        noise = random.normal(0, level, content.array.shape)
        return dataclasses.replace(content, array=(content.array + noise).round().clip(0, 255).astype(np.uint8))

    def laid(self, values: np.ndarray) -> np.ndarray:
        return values.sum(0)

    def draw(self, tensor: np.ndarray) -> np.ndarray:
        pixels_CHW = np.repeat(tensor, 3, axis=0) if tensor.shape[0] == 1 else tensor
        return pixels_CHW.transpose(1, 2, 0)


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
