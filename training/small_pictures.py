"""Whether two small pictures show the same but for a crop, a stretch or a shift: keys to find such pairs by, and how
alike they are.

A small picture is a photo made smaller, or the spectrum of a recording over time. Both are compared by what is finer
than their broad light and shade, which all X-rays, all streets and all voices share.

Shapes: N pictures, P pairs, V variants, B bands, H, W rows and columns, M motions.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

_AT_ONCE = 64  # pairs whose gradients are in memory
_MANY = 4096  # pairs whose cosines are
_STAGES = ((1.5, 3), (0.75, 3))  # of aligning, at half the size: pixels by which pictures are blurred, and steps
_BLUR, _STEPS = 0.75, 2  # at last, at the whole size
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
        least_aligned: correlation after each stage of aligning below which they are others.
        frequencies: how many cosines a side, from the lowest, keys are made of.
        bands: tables of keys.
    """

    height: int
    width: int
    variants: tuple[Crop, ...]
    farthest: tuple[float, float, float, float]
    fine: tuple[float, float]
    least_cosines: float
    least_aligned: tuple[float, float]
    frequencies: int = 8
    bands: int = 24

    def keys(self, pictures: Pictures, count: int) -> np.ndarray:
        """uint64 (N, V, B): signs of random projections of a picture's cosines. More pictures have longer keys, so that
        few share one by chance."""
        bits = min(14 + int(np.log2(count + 1)), _LONGEST)
        planes_FK = self._planes[..., :bits].transpose(1, 0, 2).reshape(self.frequencies**2, -1)
        packed = np.zeros((count, len(self.variants), self.bands, 8), np.uint8)
        for part in _portions(count):
            positive = self._cosines(pictures(part)) @ planes_FK > 0
            some = np.packbits(positive.reshape(*positive.shape[:2], self.bands, bits), axis=-1, bitorder="little")
            packed[part, ..., : some.shape[-1]] = some
        return packed.view("<u8")[..., 0].astype(np.uint64, copy=False)

    def similarity(self, pictures: Pictures, count: int, pairs_3P: np.ndarray) -> np.ndarray:
        """float32 (P,): the correlation of what is fine in both, once the second one is moved onto the first; 0 where
        not even their cosines, or what is coarse, are alike.

        Args:
            pairs_3P: as of `Signature.similarity`.
        """
        first, second, variants = pairs_3P
        alike = np.zeros(len(first), np.float32)
        there, places = np.unique(pairs_3P[:2], return_inverse=True)
        cosines_NVF = np.empty((len(there), len(self.variants), self.frequencies**2), np.float16)
        for part in _portions(len(there)):
            cosines_NVF[part] = self._cosines(pictures(there[part]))
        one, other = places.reshape(2, -1)
        for part in _portions(len(first), _MANY):
            ends = cosines_NVF[one[part], 0], cosines_NVF[other[part], variants[part]]
            alike[part] = (ends[0].astype(np.float32) * ends[1]).sum(axis=1)
        close = np.flatnonzero(alike > self.least_cosines)
        alike[:] = 0
        for part in _portions(len(close)):
            some = close[part]
            alike[some] = self._similarity(pictures(first[some]), pictures(second[some]), self._motions[variants[some]])
        return alike

    def _similarity(self, first: np.ndarray, second: np.ndarray, motions_PM: np.ndarray) -> np.ndarray:
        alike, near = np.zeros(len(first), np.float32), np.arange(len(first))
        halves, motions_PM = [_halved(pictures) for pictures in (first, second)], motions_PM * _HALF
        for (blur, steps), least in zip(_STAGES, self.least_aligned, strict=True):
            fixed, moving = (_standard(_blurred(pictures[near], blur)) for pictures in halves)
            motions_PM = self._aligned(fixed, moving, motions_PM, steps, self._farthest * _HALF)
            is_close = _correlation(fixed, *_moved(moving, motions_PM)) > least
            near, motions_PM = near[is_close], motions_PM[is_close]
        if near.size:
            first, second, motions_PM = first[near], second[near], motions_PM / _HALF
            fixed, moving = (_standard(_blurred(pictures, _BLUR)) for pictures in (first, second))
            motions_PM = self._aligned(fixed, moving, motions_PM, _STEPS, self._farthest)
            softened, broad = self.fine
            fixed, moving = (_blurred(pictures, softened) - _blurred(pictures, broad) for pictures in (first, second))
            alike[near] = np.clip(_correlation(fixed, *_moved(moving, motions_PM)), 0, 1)
        return alike

    def _cosines(self, pictures_NHW: np.ndarray) -> np.ndarray:
        """float32 (N, V, F), of length 1: low cosines of pictures in each variant, without the mean; the higher ones,
        which are weaker in whatever is a picture, are raised."""
        rows_RH, columns_CW, of_V = self._bases
        count, height, width = pictures_NHW.shape
        across = (pictures_NHW.reshape(-1, width) @ columns_CW.T).reshape(count, height, -1)
        every = (rows_RH @ across).reshape(
            count, -1, self.frequencies, len(columns_CW) // self.frequencies, self.frequencies
        )
        cosines_NVF = every.transpose(0, 1, 3, 2, 4)[:, of_V[0], of_V[1]].reshape(count, len(self.variants), -1)
        cosines_NVF = cosines_NVF * self._raised
        return cosines_NVF / np.maximum(np.linalg.norm(cosines_NVF, axis=-1, keepdims=True), _EPSILON)

    def _aligned(
        self, fixed: np.ndarray, moving: np.ndarray, motions_PM: np.ndarray, steps: int, farthest: np.ndarray
    ) -> np.ndarray:
        """The motions that bring pictures onto others, by Gauss-Newton steps from those given (Lucas and Kanade 1981),
        with contrast and brightness free."""
        free = np.flatnonzero(self.farthest)
        count, height, width = fixed.shape
        rows, columns = ((np.arange(n, dtype=np.float32) - (n - 1) / 2) for n in (height, width))
        slopes = np.empty((count, len(free) + 2, height, width), np.float32)
        for _ in range(steps):
            moved, within = _moved(moving, motions_PM)
            by_row, by_column = _slope(moved), _slope(moved.transpose(0, 2, 1)).transpose(0, 2, 1)
            for place, n in enumerate(free):
                slopes[:, place] = (by_row, by_column)[n % 2] * (1 if n < 2 else (rows[:, None], columns)[n % 2])
            slopes[:, -2], slopes[:, -1] = moved, 1
            slopes *= within[:, None]
            flat = slopes.reshape(count, len(free) + 2, -1)
            missing = ((fixed - moved) * within).reshape(count, -1, 1)
            normal = flat @ flat.transpose(0, 2, 1)
            damping = 1e-3 * np.trace(normal, axis1=1, axis2=2) / normal.shape[1] + _EPSILON
            normal += damping[:, None, None] * np.eye(normal.shape[1], dtype=np.float32)
            step = np.linalg.solve(normal, flat @ missing)[:, : len(free), 0]
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
    def _bases(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The matrices that take rows and columns of a picture to its cosines, for all motions of an axis that variants
        have, one below the other; and which two of these motions are a variant's (2, V)."""
        matrices, of = [], []
        for axis, size in enumerate((self.height, self.width)):
            motions, numbers = np.unique(self._motions[:, axis::2], axis=0, return_inverse=True)
            cosines = np.cos(np.pi * np.outer(np.arange(self.frequencies), np.arange(size) + 0.5) / size)
            moved = cosines @ _weights(size, motions[:, 0], motions[:, 1])
            matrices.append(moved.reshape(-1, size).astype(np.float32))
            of.append(numbers.ravel())
        return matrices[0], matrices[1], np.stack(of)

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
    wanted = np.clip(_wanted(size, shifts_P, growths_P) + (size - 1) / 2, 0, size - 1)
    before = np.floor(wanted)
    places = before[..., None] + np.arange(-1, 3, dtype=np.float32)  # only four old places count for each
    apart = np.abs(wanted[..., None] - places)
    near, far = (1.5 * apart - 2.5) * apart * apart + 1, ((2.5 - 0.5 * apart) * apart - 4) * apart + 2
    four = np.where(apart < 1, near, far) * ((places >= 0) & (places < size))
    four /= four.sum(axis=-1, keepdims=True)
    room = size + 3  # for places beyond the edges, which weigh nothing
    weights = np.zeros((len(shifts_P), size, room), np.float32)
    starts = np.arange(before.size).reshape(before.shape) * room + before.astype(np.int64)
    weights.ravel()[starts[..., None] + np.arange(4)] = four
    return weights[..., 1 : size + 1]


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


def _slope(pictures_PHW: np.ndarray) -> np.ndarray:
    """How much the rows rise: half the difference of the neighbours, at the edges that to the only one."""
    slopes = np.empty_like(pictures_PHW)
    np.subtract(pictures_PHW[:, 2:], pictures_PHW[:, :-2], out=slopes[:, 1:-1])
    slopes[:, 1:-1] /= 2
    slopes[:, 0] = pictures_PHW[:, 1] - pictures_PHW[:, 0]
    slopes[:, -1] = pictures_PHW[:, -1] - pictures_PHW[:, -2]
    return slopes


def _blurred(pictures_PHW: np.ndarray, sigma: float) -> np.ndarray:
    if not sigma:
        return pictures_PHW
    rows, columns = (_gaussian(size, sigma) for size in pictures_PHW.shape[1:])
    return rows @ pictures_PHW @ columns.T


@functools.cache
def _gaussian(size: int, sigma: float) -> np.ndarray:
    """float32 (size, size): what blurs an axis, whose ends go on as they are."""
    reach = int(4 * sigma + 0.5)
    apart = np.arange(-reach, reach + 1)
    weights = np.exp(-0.5 * np.square(apart / sigma))
    matrix = np.zeros((size, size))
    np.add.at(matrix, (np.arange(size)[:, None], np.clip(np.arange(size)[:, None] + apart, 0, size - 1)), weights)
    return (matrix / weights.sum()).astype(np.float32)


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


def _portions(count: int, each: int = _AT_ONCE) -> Iterator[slice]:
    return (slice(start, min(start + each, count)) for start in range(0, count, each))
