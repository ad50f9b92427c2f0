"""Images: pictures of any common format, upright, in 8-bit RGB (`training.images`)."""

import io
from typing import Any, ClassVar

import numpy as np
import PIL.Image
import pyarrow as pa

from training.images import Image, decode_image
from training.media import SUFFIX_FORMATS
from training.modalities.base import Modality
from training.settings import ImageAugmentation, MediaLimits


class ImageModality(Modality):
    name = "image"
    described = "upright, checked for damage, RGB"
    version = 3
    packages = ("pillow", "simplejpeg")
    columns: ClassVar = {
        "format": pa.string(),
        "mode": pa.string(),
        "width": pa.int64(),
        "height": pa.int64(),
    }
    suffixes = SUFFIX_FORMATS
    limits: ClassVar = {"max_pixels": "width * height"}
    default_featurizer = "pixels"
    picture = "pixels"
    Augmentation = ImageAugmentation
    picture_title = "image"
    column_words: ClassVar = {
        "format": "that the content has, whatever the name says",
        "mode": "Pillow's, as stored: RGB, L, P, CMYK, ...",
        "width": "pixels of the upright picture, after EXIF orientation",
        "height": "pixels of the upright picture, after EXIF orientation",
    }
    media_type = "image/*"
    file_suffixes = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".avif", ".jp2")

    def decode(self, data: bytes, limits: MediaLimits, size: int | None = None) -> Image:
        return decode_image(data, limits, size)

    def describe(self, content: Image) -> dict[str, Any]:
        return {name: getattr(content, name) for name in (*self.columns, "warnings")}

    def nbytes(self, content: Image) -> int:
        return content.array.nbytes

    def example(self) -> bytes:
        """A gradient, as PNG."""
        picture = io.BytesIO()
        pixels_HW = np.add.outer(np.arange(32), np.arange(32)).astype(np.uint8) * 4
        PIL.Image.fromarray(pixels_HW).save(picture, "PNG")
        return picture.getvalue()

    def draw(self, tensor: np.ndarray) -> np.ndarray:
        pixels_CHW = np.repeat(tensor, 3, axis=0) if tensor.shape[0] == 1 else tensor
        return pixels_CHW.transpose(1, 2, 0)
