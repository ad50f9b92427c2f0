"""Clocks that differ by an offset and a drift: applied to times, and estimated from events that both have seen.

The offset is looked for where many differences of times agree (the peak of their histogram, as in cross-correlation of
point processes: Perkel, Gerstein, Moore 1967), for each drift that may be; a line through the matched events makes it
exact. It is refused unless chance is no explanation, no other offset is nearly as good, and it is as exact as asked.
"""

import itertools
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import numpy as np

_WIDTHS = (0.005, 0.02, 0.08)  # seconds within which events of one moment may be stamped by their sources
_CHANCE = 1e-6  # an offset that chance explains better than so is none
_RIVAL = 0.5  # of the peak: what another offset may have at most, unless the two differ by
_SIGMAS = 5.0  # so many standard deviations
_WORK = 20_000_000  # pairs and bins, times drifts, that are looked at; of more events the middle ones are taken first
_LEAST = 4  # events of either source
_NEAR = 3  # widths around the peak that belong to it


class ClockError(ValueError):
    """The events do not say how the clocks differ; the message says why."""


@dataclass(frozen=True)
class Clock:
    """Each time t (microseconds) becomes t + offset + drift * (t - origin). What was estimated has standard errors, in
    microseconds and in seconds a second, and says by how many events."""

    offset: int
    drift: float = 0.0
    origin: int = 0
    offset_error: float | None = None
    drift_error: float | None = None
    events: int = 0  # that match
    of: int = 0  # events of the source
    spread: float = 0.0  # standard deviation of what is left between matched events, in microseconds
    chance: float = 0.0  # that unrelated events agree as well, at most

    def figures(self) -> dict[str, Any]:
        """For the report: seconds, and parts in a million."""
        at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=self.origin)
        return {
            "offset": self.offset / 1e6,
            "offset_error": (self.offset_error or 0.0) / 1e6,
            "drift_ppm": self.drift * 1e6,
            "drift_error_ppm": None if self.drift_error is None else self.drift_error * 1e6,
            "origin": at.isoformat(),
            "events": self.events,
            "of": self.of,
            "spread": self.spread / 1e6,
            "chance": self.chance,
        }


Events = tuple[np.ndarray, np.ndarray]  # times in microseconds, and of what kind each is: only equal kinds can match


def estimate(
    reference: Events,
    other: Events,
    within: float = 60.0,
    max_drift: float = 200e-6,
    drift: float | None = None,
    accuracy: float = 0.01,
    among: int = 1,
) -> Clock:
    """What has to be added to the times of `other` to get those of `reference`.

    Args:
        within: the offset is looked for from minus to plus so many seconds.
        max_drift: the drift likewise, in seconds a second.
        drift: it is known.
        accuracy: seconds; twice the standard error has to be less, wherever `other` has events.
        among: so many clocks are estimated by the same settings: the more, the sooner chance makes one agree.

    Raises:
        ClockError: the events do not say it.
    """
    if min(len(reference[0]), len(other[0])) < _LEAST:
        counts = f"{len(other[0]):,} and {len(reference[0]):,}"
        raise ClockError(f"there are {counts} events, and {_LEAST} of each are the least")
    origin = int(np.median(other[0]))
    low, high = (0.0, 0.0) if drift is not None else (-max_drift, max_drift)
    matcher = _Matcher.of(reference, other, origin, within, drift or 0.0)
    peak = _find_peak(matcher, within, high, among)
    fit = _refine(matcher, peak, free_drift=high > low)
    _check(matcher, fit, peak, accuracy)
    middle = origin + round(fit.center * 1e6)
    total = fit.drift + (drift or 0.0)
    # At the middle of the matched events, where offset and drift have nothing to do with each other.
    offset = fit.offset + fit.drift * fit.center + (drift or 0.0) * fit.center
    return Clock(
        offset=round(offset * 1e6),
        drift=float(total),
        origin=middle,
        offset_error=float(fit.offset_error) * 1e6,
        drift_error=float(fit.drift_error) if high > low else None,
        events=fit.events,
        of=len(other[0]),
        spread=fit.spread * 1e6,
        chance=peak.chance,
    )


@dataclass(frozen=True)
class _Matcher:
    """Events in seconds since the origin, each kind in a lane of its own on one line, sorted."""

    reference: np.ndarray  # lane + time
    lane: np.ndarray  # of each event of the other source
    time: np.ndarray

    @classmethod
    def of(cls, reference: Events, other: Events, origin: int, within: float, drift: float) -> "_Matcher":
        kinds = np.intersect1d(reference[1], other[1])
        if not len(kinds):
            raise ClockError("no event of one is called as one of the other")
        times, lanes = [], []
        for events in (reference, other):
            known = np.isin(events[1], kinds)
            times.append((events[0][known] - origin) / 1e6)
            lanes.append(np.searchsorted(kinds, events[1][known]))
        times[1] = times[1] * (1 + drift)
        width = max(t.max() for t in times) - min(t.min() for t in times) + 4 * within + 1
        line, order = np.sort(lanes[0] * width + times[0]), np.argsort(times[1], kind="stable")
        lane, time = (lanes[1] * width)[order], times[1][order]
        # What has nothing near it can match nothing.
        near = np.searchsorted(line, lane + time + 2 * within) > np.searchsorted(line, lane + time - 2 * within)
        if np.count_nonzero(near) < _LEAST:
            raise ClockError(f"fewer than {_LEAST} events have one of the other source within {within:g} s")
        return cls(line, lane[near], time[near])

    def differences(self, some: slice, reach: float) -> tuple[np.ndarray, np.ndarray]:
        """Of all pairs within reach: how much later the reference's event is, and when the other's was."""
        at = (self.lane + self.time)[some]
        first, end = np.searchsorted(self.reference, at - reach), np.searchsorted(self.reference, at + reach)
        counts = end - first
        rows = np.repeat(np.arange(len(at)), counts)
        columns = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + np.repeat(first, counts)
        return self.reference[columns] - at[rows], self.time[some][rows]

    def pairs(self, some: slice, reach: float) -> int:
        at = (self.lane + self.time)[some]
        return int((np.searchsorted(self.reference, at + reach) - np.searchsorted(self.reference, at - reach)).sum())

    def residuals(self, some: slice, offset: float, drift: float, gate: float) -> tuple[np.ndarray, np.ndarray]:
        """Of the events with one of the reference (which counts once) within the gate: what is left, and when."""
        time = self.time[some]
        at = self.lane[some] + time * (1 + drift) + offset
        right = np.clip(np.searchsorted(self.reference, at), 1, len(self.reference) - 1)
        nearest = np.where(at - self.reference[right - 1] <= self.reference[right] - at, right - 1, right)
        left = self.reference[nearest] - at
        order = np.argsort(np.abs(left), kind="stable")
        _, first = np.unique(nearest[order], return_index=True)
        taken = order[first]
        taken = taken[np.abs(left[taken]) <= gate]
        return left[taken], time[taken]


class _Peak(NamedTuple):
    some: slice  # which events of the other source it is of
    width: float
    offset: float  # at the origin
    drift: float
    chance: float


def _find_peak(matcher: _Matcher, within: float, max_drift: float, among: int) -> _Peak:
    """The best of all widths, drifts and offsets. Raises ClockError where it is not good enough."""
    best: tuple[_Peak, float, float] | None = None
    for width in _WIDTHS:
        some, drifts = _budget(matcher, within, max_drift, width)
        span = matcher.time[some]
        center = float((span[0] + span[-1]) / 2)
        reach = within + max_drift * float(span[-1] - span[0]) / 2
        later, when = matcher.differences(some, reach)
        trials = among * len(_WIDTHS) * len(drifts) * 2 * within / width
        all_counts = ((_histogram(later - d * (when - center), within, width), d) for d in drifts)
        counts, found = max(all_counts, key=lambda pair: pair[0].max())
        bins = int(counts.argmax())
        excess, rival, chance = _judged(counts, bins, trials)
        offset = -within + (bins + 1) * width / 2  # at the center
        peak = _Peak(some, width, offset - found * center, found, chance)
        if best is None or (chance, -excess) < (best[0].chance, -best[1]):
            best = peak, excess, rival
    assert best is not None
    peak, excess, rival = best
    if peak.chance > _CHANCE:
        raise ClockError(
            "no offset makes more events agree than chance does (are they events of the same moments, and is the "
            f"offset within {within:g} s?)"
        )
    if rival > _RIVAL * excess and excess - rival < _SIGMAS * np.sqrt(excess + rival):
        raise ClockError(
            f"several offsets are about as good ({excess:.0f} events agree at the best, {rival:.0f} at another one): "
            "they repeat, or a clock was set meanwhile; mark those that are shared (`events`), or look `within` less"
        )
    return peak


def _budget(matcher: _Matcher, within: float, max_drift: float, width: float) -> tuple[slice, np.ndarray]:
    """The middle events, as many as can be looked at, and the drifts that make a difference over their time."""
    count, middle = len(matcher.time), len(matcher.time) // 2
    while True:
        some = slice(max(0, middle - count // 2), middle + -(-count // 2))
        span = float(matcher.time[some][-1] - matcher.time[some][0])
        steps = int(np.ceil(max_drift * span / width))
        drifts = max_drift * np.arange(-steps, steps + 1) / max(1, steps)
        work = matcher.pairs(some, within + max_drift * span / 2) + 4 * within / width
        if count <= 2 * _LEAST or work * len(drifts) <= _WORK:
            return some, drifts
        count = count // 2


def _histogram(differences: np.ndarray, within: float, width: float) -> np.ndarray:
    """Counts in overlapping bins: the nth begins at -within + n * width / 2."""
    bins = int(np.ceil(4 * within / width))
    number = np.floor((differences + within) * (2 / width)).astype(np.int64)
    half = np.bincount(number[(number >= 0) & (number < bins)], minlength=bins)
    return half[:-1] + half[1:]


def _judged(counts: np.ndarray, peak: int, trials: float) -> tuple[float, float, float]:
    """How much more the peak has than its surroundings, how much more the best of the others has, and the chance that
    unrelated events give such a peak somewhere: that of a Poisson distribution, widened to what the others vary."""
    from scipy.ndimage import uniform_filter1d
    from scipy.special import gammainc

    others = np.ones(len(counts), bool)
    others[max(0, peak - 2 * _NEAR) : peak + 2 * _NEAR + 1] = False
    if not others.any():
        return float(counts[peak]), float(counts[peak]), 1.0
    flat = np.where(others, counts, counts[others].mean()).astype(float)
    usual = np.maximum(uniform_filter1d(flat, 201, mode="nearest"), 1e-9)
    base = max(float(usual[peak]), float(flat.mean()), 1e-9)
    spread = max(1.0, float(np.mean((counts - usual)[others] ** 2) / max(usual[others].mean(), 1e-9)))
    chance = min(1.0, trials * float(gammainc(max(counts[peak] / spread, 1e-9), base / spread)))
    return float(counts[peak]) - base, float((counts - usual)[others].max()), chance


class _Fit(NamedTuple):
    offset: float  # at the origin
    drift: float
    center: float  # mean time of the matched events
    offset_error: float  # there
    drift_error: float
    spread: float
    events: int


def _refine(matcher: _Matcher, peak: _Peak, free_drift: bool) -> _Fit:
    """A line through what matches, first of the events that gave the peak, then of ever more around them."""
    offset, drift, gate = peak.offset, peak.drift, peak.width
    start, stop = peak.some.start, min(peak.some.stop, len(matcher.time))
    while True:
        some = slice(start, stop)
        for _ in range(5):
            left, when = _typical(*matcher.residuals(some, offset, drift, gate), free_drift)
            fit = _line(left, when, offset, drift, free_drift)
            offset, drift, gate = fit.offset, fit.drift, min(gate, max(4 * fit.spread, 1e-4))
        if (start, stop) == (0, len(matcher.time)):
            return fit
        more = stop - start
        start, stop = max(0, start - more // 2), min(len(matcher.time), stop + -(-more // 2))
        gate = max(gate, min(peak.width, 6 * fit.spread + 1e-3))


def _typical(left: np.ndarray, when: np.ndarray, free_drift: bool) -> tuple[np.ndarray, np.ndarray]:
    """Without what is far from where most lie: pairs by chance, which would draw the line to them."""
    for _ in range(4):
        if len(left) < _LEAST:
            break
        mean, slope = _slope(left, when, free_drift)
        rest = left - mean - slope * (when - when.mean())
        rest -= np.median(rest)
        near = np.abs(rest) <= max(4 * 1.4826 * float(np.median(np.abs(rest))), 2e-6)
        left, when = left[near], when[near]
    return left, when


def _slope(left: np.ndarray, when: np.ndarray, free_drift: bool) -> tuple[float, float]:
    about = when - when.mean()
    weight = float((about**2).sum())
    slope = float((about * left).sum()) / weight if free_drift and weight > 0 else 0.0
    return float(left.mean()), slope


def _line(left: np.ndarray, when: np.ndarray, offset: float, drift: float, free_drift: bool) -> _Fit:
    """Least squares of what is left; what was there before is added."""
    n = len(left)
    if n < _LEAST:
        raise ClockError(f"only {n} events agree, and {_LEAST} are the least")
    (mean, slope), center = _slope(left, when, free_drift), float(when.mean())
    about = when - center
    spread = float(np.sqrt(((left - mean - slope * about) ** 2).sum() / (n - 1 - free_drift)))
    slope_error = spread / max(float(np.sqrt((about**2).sum())), 1e-9) if free_drift else 0.0
    return _Fit(offset + mean - slope * center, drift + slope, center, spread / np.sqrt(n), slope_error, spread, n)


def _check(matcher: _Matcher, fit: _Fit, peak: _Peak, accuracy: float) -> None:
    """Raises ClockError where the clocks do not keep to the line, or where it is not known well enough."""
    _, when = matcher.residuals(slice(0, len(matcher.time)), fit.offset, fit.drift, max(4 * fit.spread, 1e-4))
    thirds = np.quantile(matcher.time, [0, 1 / 3, 2 / 3, 1])
    shares = []
    for first, last in itertools.pairwise(thirds):
        of = int(np.count_nonzero((matcher.time >= first) & (matcher.time <= last)))
        shares.append((int(np.count_nonzero((when >= first) & (when <= last))) / max(1, of), of))
    best = max(share for share, _ in shares)
    if any(share < best / 2 and best * of >= 30 for share, of in shares):
        said = ", ".join(f"{share:.0%}" for share, _ in shares)
        raise ClockError(
            f"they keep no one offset and drift: of the first, middle and last third of the events {said} agree with "
            "what fits best; were they set meanwhile?"
        )
    far = float(np.abs(matcher.time - fit.center).max())
    error = float(np.hypot(fit.offset_error, fit.drift_error * far))
    if 2 * error > accuracy:
        raise ClockError(
            f"{fit.events} events that agree to {fit.spread * 1e3:.3g} ms tell it to {2 * error * 1e3:.3g} ms only, "
            f"and {accuracy * 1e3:.3g} ms is asked for (`accuracy`)"
        )
