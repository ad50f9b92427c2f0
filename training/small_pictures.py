"""Whether two small pictures show the same but for a crop, a stretch or a shift: keys to find such pairs by, and how
alike they are.

A small picture is a photo made smaller, or the spectrum of a recording over time. Both are compared by what is finer
than their broad light and shade, which all X-rays, all streets and all voices share.

Shapes: N pictures, P pairs, V variants, B bands, H, W rows and columns, M motions.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

_AT_ONCE = 64  # pairs whose gradients are in memory
_STAGES = ((1.5, 3), (0.75, 3))  # of aligning, at half the size: pixels by which pictures are blurred, and steps
_BLUR, _STEPS = 0.75, 2  # at last, at the whole size
_ALIGNED = 0.85  # correlation of pictures of half the size, once they are aligned: below it they are others
_LONGEST = 40  # bits of a key
_HALF = np.array([0.5, 0.5, 1, 1], np.float32)  # motions at half the size
_EPSILON = np.float32(1e-6)

Pictures = Callable[[Any], np.ndarray]  # numbers or a slice -> float32 (N, H, W)


@dataclass(frozen=True)
class Crop:
    """Shares of height and width that lack at the top, bottom, left and right; below 0: that are more."""

    top: float = 0.0
    bottom: float = 0.0
    left: float = 0.0
    right: float = 0.0


@dataclass(frozen=True)
class SmallPictures:
    """How pictures of one kind are compared.

    A motion is (shift in rows, shift in columns, growth in rows, growth in columns), in pixels and shares, about the
    centre.

    Args:
        variants: changes that `keys` takes a picture in, the first of which is none.
        farthest: of each motion; 0: there is none.
        fine: pixels; what is finer than the first (0: nothing) and broader than the second is not compared.
        least_cosines: likeness of their cosines below which pictures are not aligned.
        frequencies: how many cosines a side, from the lowest, keys are made of.
        bands: tables of keys.
    """

    height: int
    width: int
    variants: tuple[Crop, ...]
    farthest: tuple[float, float, float, float]
    fine: tuple[float, float]
    least_cosines: float
    frequencies: int = 8
    bands: int = 24

    def keys(self, pictures: Pictures, count: int) -> np.ndarray:
        """uint64 (N, V, B): signs of random projections of a picture's cosines. More pictures have longer keys, so that
        few share one by chance."""
        bits = min(14 + int(np.log2(count + 1)), _LONGEST)
        weights_K = np.uint64(1) << np.arange(bits, dtype=np.uint64)
        keys_NVB = np.empty((count, len(self.variants), self.bands), np.uint64)
        for part in _portions(count):
            some_NHW = pictures(part)
            for variant in range(len(self.variants)):
                positive_BNK = self._cosines(some_NHW, variant) @ self._planes[..., :bits] > 0
                keys_NVB[part, variant] = (positive_BNK * weights_K).sum(-1, dtype=np.uint64).T
        return keys_NVB

    def similarity(self, pictures: Pictures, count: int, pairs_3P: np.ndarray) -> np.ndarray:
        """float32 (P,): the correlation of what is fine in both, once the second one is moved onto the first; 0 where
        not even their cosines, or what is coarse, are alike.

        Args:
            pairs_3P: as of `Signature.similarity`.
        """
        first, second, variants = pairs_3P
        alike = np.zeros(len(first), np.float32)
        cosines_VNF = np.empty((len(self.variants), count, self.frequencies**2), np.float16)
        for part in _portions(count):
            some_NHW = pictures(part)
            for variant in range(len(self.variants)):
                cosines_VNF[variant, part] = self._cosines(some_NHW, variant)
        for part in _portions(len(first)):
            ends = cosines_VNF[0, first[part]], cosines_VNF[variants[part], second[part]]
            alike[part] = np.einsum("pf,pf->p", *ends, dtype=np.float32)
        close = np.flatnonzero(alike > self.least_cosines)
        alike[:] = 0
        for part in _portions(len(close)):
            some = close[part]
            alike[some] = self._similarity(pictures(first[some]), pictures(second[some]), self._motions[variants[some]])
        return alike

    def _similarity(self, first: np.ndarray, second: np.ndarray, motions_PM: np.ndarray) -> np.ndarray:
        alike, near = np.zeros(len(first), np.float32), np.arange(len(first))
        halves, motions_PM = [_halved(pictures) for pictures in (first, second)], motions_PM * _HALF
        for blur, steps in _STAGES:
            fixed, moving = (_standard(_blurred(pictures[near], blur)) for pictures in halves)
            motions_PM = self._aligned(fixed, moving, motions_PM, steps, self._farthest * _HALF)
            is_close = _correlation(fixed, *_moved(moving, motions_PM)) > _ALIGNED
            near, motions_PM = near[is_close], motions_PM[is_close]
        if near.size:
            first, second, motions_PM = first[near], second[near], motions_PM / _HALF
            fixed, moving = (_standard(_blurred(pictures, _BLUR)) for pictures in (first, second))
            motions_PM = self._aligned(fixed, moving, motions_PM, _STEPS, self._farthest)
            softened, broad = self.fine
            fixed, moving = (_blurred(pictures, softened) - _blurred(pictures, broad) for pictures in (first, second))
            alike[near] = np.clip(_correlation(fixed, *_moved(moving, motions_PM)), 0, 1)
        return alike

    def _cosines(self, pictures_NHW: np.ndarray, variant: int) -> np.ndarray:
        """float32 (N, F), of length 1: low cosines of a picture in a variant, without the mean; the higher ones, which
        are weaker in whatever is a picture, are raised."""
        rows, columns = self._bases[variant]
        cosines_NF = (rows @ pictures_NHW @ columns.T).reshape(len(pictures_NHW), self.frequencies**2) * self._raised
        return cosines_NF / np.maximum(np.linalg.norm(cosines_NF, axis=1, keepdims=True), _EPSILON)

    def _aligned(
        self, fixed: np.ndarray, moving: np.ndarray, motions_PM: np.ndarray, steps: int, farthest: np.ndarray
    ) -> np.ndarray:
        """The motions that bring pictures onto others, by Gauss-Newton steps from those given (Lucas and Kanade 1981),
        with contrast and brightness free."""
        free = np.flatnonzero(self.farthest)
        rows, columns = ((np.arange(n, dtype=np.float32) - (n - 1) / 2) for n in fixed.shape[1:])
        for _ in range(steps):
            moved, within = _moved(moving, motions_PM)
            by_row, by_column = np.gradient(moved, axis=1), np.gradient(moved, axis=2)
            every = (by_row, by_column, by_row * rows[:, None], by_column * columns)
            slopes = np.stack([*(every[n] for n in free), moved, np.ones_like(moved)], axis=-1) * within[..., None]
            slopes = slopes.reshape(len(fixed), -1, len(free) + 2)
            missing = ((fixed - moved) * within).reshape(len(fixed), -1, 1)
            normal = slopes.transpose(0, 2, 1) @ slopes
            damping = 1e-3 * np.trace(normal, axis1=1, axis2=2) / normal.shape[1] + _EPSILON
            normal += damping[:, None, None] * np.eye(normal.shape[1], dtype=np.float32)
            step = np.linalg.solve(normal, slopes.transpose(0, 2, 1) @ missing)[:, : len(free), 0]
            motions_PM[:, free] += step
            motions_PM = np.clip(motions_PM, -farthest, farthest)
        return motions_PM

    @cached_property
    def _farthest(self) -> np.ndarray:
        return np.asarray(self.farthest, np.float32)

    @cached_property
    def _motions(self) -> np.ndarray:
        """float32 (V, M): what takes a picture into each variant."""
        return np.array(
            [
                (
                    (crop.top - crop.bottom) / 2 * self.height,
                    (crop.left - crop.right) / 2 * self.width,
                    -(crop.top + crop.bottom),
                    -(crop.left + crop.right),
                )
                for crop in self.variants
            ],
            np.float32,
        )

    @cached_property
    def _bases(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Of each variant the matrices that take rows and columns of a picture to its cosines."""
        pairs = []
        for motion in self._motions:
            matrices = []
            for size, shift, growth in ((self.height, motion[0], motion[2]), (self.width, motion[1], motion[3])):
                cosines = np.cos(np.pi * np.outer(np.arange(self.frequencies), np.arange(size) + 0.5) / size)
                matrices.append((cosines @ _weights(size, shift[None], growth[None])[0]).astype(np.float32))
            pairs.append((matrices[0], matrices[1]))
        return pairs

    @cached_property
    def _raised(self) -> np.ndarray:
        by_row, by_column = np.meshgrid(*2 * [np.arange(self.frequencies)], indexing="ij")
        frequency_F = np.hypot(by_row, by_column).ravel()
        return (frequency_F * (frequency_F < self.frequencies)).astype(np.float32)

    @cached_property
    def _planes(self) -> np.ndarray:
        """float32 (B, F, K) of the projections; the same in each process."""
        shape = self.bands, self.frequencies**2, _LONGEST
        return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def _weights(size: int, shifts_P: np.ndarray, growths_P: np.ndarray) -> np.ndarray:
    """float32 (P, size, size): how much of each old place each place of a moved axis takes, by cubic interpolation
    (Keys 1981)."""
    wanted = _wanted(size, shifts_P, growths_P) + (size - 1) / 2
    apart = np.abs(np.clip(wanted, 0, size - 1)[..., None] - np.arange(size, dtype=np.float32))
    near, far = (1.5 * apart - 2.5) * apart * apart + 1, ((2.5 - 0.5 * apart) * apart - 4) * apart + 2
    weights = np.where(apart < 1, near, np.where(apart < 2, far, 0))
    return (weights / weights.sum(axis=-1, keepdims=True)).astype(np.float32)


def _wanted(size: int, shifts_P: np.ndarray, growths_P: np.ndarray) -> np.ndarray:
    """(P, size): the old places of a moved axis, from its centre."""
    places = np.arange(size, dtype=np.float32) - (size - 1) / 2
    return places * (1 + growths_P[:, None]) + shifts_P[:, None]


def _moved(pictures_PHW: np.ndarray, motions_PM: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pictures after their motions, and (P, H, W) where there was something to move there."""
    axes = [(size, motions_PM[:, n], motions_PM[:, n + 2]) for n, size in enumerate(pictures_PHW.shape[1:])]
    rows, columns = (_weights(*axis) for axis in axes)
    inside = [np.abs(_wanted(*axis)) <= axis[0] / 2 for axis in axes]
    within = inside[0][:, :, None] & inside[1][:, None, :]
    return rows @ pictures_PHW @ columns.transpose(0, 2, 1), within.astype(np.float32)


def _standard(pictures_PHW: np.ndarray) -> np.ndarray:
    centred = pictures_PHW - pictures_PHW.mean((1, 2), keepdims=True)
    return centred / np.maximum(centred.std((1, 2), keepdims=True), _EPSILON)


def _blurred(pictures_PHW: np.ndarray, sigma: float) -> np.ndarray:
    from scipy.ndimage import gaussian_filter1d

    for axis in (1, 2) if sigma else ():
        pictures_PHW = gaussian_filter1d(pictures_PHW, sigma, axis=axis, mode="nearest")
    return pictures_PHW


def _halved(pictures_PHW: np.ndarray) -> np.ndarray:
    count, height, width = pictures_PHW.shape
    return pictures_PHW.reshape(count, height // 2, 2, width // 2, 2).mean((2, 4))


def _correlation(first: np.ndarray, second: np.ndarray, within: np.ndarray) -> np.ndarray:
    """Pearson's, of each pair, where `within` is 1."""
    count = np.maximum(within.sum((1, 2), keepdims=True), 1)
    parts = [(p - (p * within).sum((1, 2), keepdims=True) / count) * within for p in (first, second)]
    power = [np.square(part).sum((1, 2)) for part in parts]
    return (parts[0] * parts[1]).sum((1, 2)) / np.maximum(np.sqrt(power[0] * power[1]), _EPSILON)


def unpacked(values: Sequence[bytes], height: int, width: int, start: int = 0) -> Pictures:
    """Of numbers or a slice the pictures, which are kept as uint8, each from the byte `start` on."""

    def pictures(wanted: Any) -> np.ndarray:
        some = values[wanted] if isinstance(wanted, slice) else [values[n] for n in wanted]
        flat = np.frombuffer(b"".join(value[start:] for value in some), np.uint8)
        return flat.reshape(-1, height, width).astype(np.float32)

    return pictures


def _portions(count: int) -> Iterator[slice]:
    return (slice(start, min(start + _AT_ONCE, count)) for start in range(0, count, _AT_ONCE))
