"""A picture of 48 x 48 grey pixels: hashed to be found, and laid over others to be sure.

Hashes are random projections of its cosines (Zauner 2010 compares such hashes); alone they take one X-ray for another.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from training.images import Image
from training.signatures.base import Signature, SignatureOptions
from training.small_pictures import Crop, SmallPictures, unpacked

_SIDE = 48
_LEAST_SIDE = 64  # pixels of a picture: icons and written digits are alike without being the same
_LEAST_CONTRAST = 1.0  # of the small picture, in levels of 256: less is a blank page
_CUT = (0.0, 0.1)  # shares that may lack at an edge; what lies between is found by aligning
_CROPS = (Crop(), *(Crop(*cut) for cut in product(_CUT, repeat=4) if any(cut)), Crop(0.05, 0.05, 0.05, 0.05))
_PICTURES = SmallPictures(
    _SIDE, _SIDE, _CROPS, farthest=(6, 6, 0.25, 0.25), fine=(0.7, 2), least_cosines=0.86, least_aligned=(0.91, 0.92)
)


@dataclass(frozen=True, kw_only=True)
class PerceptualHashOptions(SignatureOptions):
    least: float = 0.87


class PerceptualHashSignature(Signature):
    """Of pictures of 64 pixels a side or more; where features need less than 48 pixels a side, JPEGs may be decoded
    smaller than that, and are not signed."""

    version = 2
    packages = ("numpy", "opencv-python-headless")
    Options = PerceptualHashOptions

    def sign(self, content: Image) -> bytes | None:
        import cv2

        if min(content.width, content.height) < _LEAST_SIDE or min(content.array.shape[:2]) < _SIDE:
            return None
        array = np.ascontiguousarray(content.array)
        while min(array.shape[:2]) >= 2 * _SIDE:  # halves take a quarter of the time of the same mean of all at once
            height, width = (side // 2 for side in array.shape[:2])
            array = cv2.resize(array[: 2 * height, : 2 * width], (width, height), interpolation=cv2.INTER_AREA)
        grey_HW = cv2.resize(cv2.cvtColor(array, cv2.COLOR_RGB2GRAY), (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
        fine_HW = cv2.subtract(grey_HW, cv2.blur(grey_HW, (5, 5)), dtype=cv2.CV_16S)
        return grey_HW.tobytes() if cv2.meanStdDev(fine_HW)[1][0, 0] >= _LEAST_CONTRAST else None

    def keys(self, values: Sequence[bytes]) -> np.ndarray:
        return _PICTURES.keys(unpacked(values, _SIDE, _SIDE), len(values))

    def similarity(self, values: Sequence[bytes], pairs_3P: np.ndarray) -> np.ndarray:
        return _PICTURES.similarity(unpacked(values, _SIDE, _SIDE), len(values), pairs_3P)
