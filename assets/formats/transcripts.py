"""What recognisers of speech write as JSON: words or segments with their times, at whatever depth.

Whisper and WhisperX, Vosk, Deepgram, Google, Amazon Transcribe, Rev, AssemblyAI have in common: an object with a text
and a start, in lists under a few names. Of several alternatives the first one is taken. What they hold beside stays.
"""

from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

from assets.formats import cues

WORDS, SEGMENTS = UNITS = ("words", "segments")  # what a row is; also the lists of them
COLUMNS = (*cues.COLUMNS, "speaker", "channel", "confidence")
_LISTS = ("results", "result", "channels", "monologues", "elements", "items")  # in which words or others lie
_NAMES = {
    "text": ("word", "text", "content", "value", "transcript"),
    "start": ("start", "start_time", "startTime", "startOffset", "ts"),
    "end": ("end", "end_time", "endTime", "endOffset", "end_ts"),
    "speaker": ("speaker", "speaker_label", "speakerTag", "speakerLabel", "speaker_id"),
    "channel": ("channel", "channelTag", "channel_label"),
    "confidence": ("confidence", "probability", "score", "conf"),
}
_RENAMED = frozenset(key for keys in _NAMES.values() for key in keys)
_SHARED = ("speaker", "channel")  # where they are not said of a word, those of what it lies in
_NO_WORDS = ("punctuation", "punct", "spacing")  # types of things that have no times of their own

_LONGEST_WORD = 10  # seconds

Stretch = tuple[dict[str, Any], str | None]  # cells, and why it cannot be used


def find(lists: Mapping[str, Any], unit: str) -> str | None:
    """The key of an object at which its stretches lie; None where it has none.

    Args:
        lists: by key of the object the first element of a list (None: it is empty), or what else lies there.
    """
    return next((key for key in _order(unit) if key in lists and _holds(key, lists[key])), None)


def per_second(lists: Mapping[str, Any]) -> int:
    """What times are counted in: 1000 where they are milliseconds, as those of AssemblyAI: whole numbers, beside an
    `audio_duration`, in which the first word lasts too long to be seconds. Args: as of `find`."""
    word, duration = lists.get(WORDS), lists.get("audio_duration")
    times = [word.get(name) for name in ("start", "end")] if isinstance(word, dict) and "text" in word else [None]
    whole = [time for time in times if isinstance(time, int) and not isinstance(time, bool)]
    is_known = isinstance(duration, int | float) and len(whole) == 2
    return 1000 if is_known and whole[1] - whole[0] >= _LONGEST_WORD else 1


def stretches(value: Any, unit: str, shared: Mapping[str, Any] | None = None, per_second: int = 1) -> Iterator[Stretch]:
    """Those within a value.

    Args:
        unit: of UNITS, where there are both.
        shared: what holds for all of them.
    """
    if isinstance(value, list):
        for element in value:
            yield from stretches(element, unit, shared, per_second)
        return
    if not isinstance(value, dict):
        yield {}, "holds something else than an object with text and times"
        return
    if alternatives := value.get("alternatives"):
        best = alternatives[0] if isinstance(alternatives, list) else alternatives
        value = {**value, **(best if isinstance(best, dict) else {})}
    found = {name: cell for name in _NAMES if (cell := _named(value, name)) is not None}
    shared = {**(shared or {}), **{name: found[name] for name in _SHARED if name in found}}
    is_whole = unit == SEGMENTS and "text" in found and "start" in found
    inner = next((key for key in _order(unit) if isinstance(value.get(key), list | dict)), None)
    if inner is not None and not (is_whole and inner == WORDS):
        for number, element in enumerate(_listed(value[inner])):
            own = {"channel": number} if inner == "channels" else {}
            yield from stretches(element, unit, {**shared, **own}, per_second)
    elif value.get("type") not in _NO_WORDS:
        yield _stretch(value, {**shared, **found}, per_second)


def _stretch(value: Mapping[str, Any], found: Mapping[str, Any], per_second: int) -> Stretch:
    text = found.get("text")
    if not isinstance(text, str) or not text.strip():
        return {**found}, "holds a word or segment without text"
    try:
        start, end = (_time(found.get(name)) / per_second for name in ("start", "end"))
    except ValueError as error:
        return {**found}, f"{text.strip()[:40]!r}: {error}"
    if problem := cues.misplaced(start, end):
        return {**found}, f"{text.strip()[:40]!r}: {problem}"
    beside = {name: cell for name, cell in value.items() if name not in _RENAMED and not isinstance(cell, dict | list)}
    times = {"start": cues.seconds(start), "end": cues.seconds(end)}
    return {**beside, **found, **times, "text": text.strip()}, None


def _time(cell: Any) -> Decimal:
    """Seconds: 1.5, "1.5" or "1.5s". Raises ValueError."""
    if cell is None or isinstance(cell, bool | list | dict):
        raise ValueError("has no times")
    return cues.number(str(cell).removesuffix("s"))


def _named(value: Mapping[str, Any], name: str) -> Any:
    return next((value[key] for key in _NAMES[name] if value.get(key) is not None), None)


def _order(unit: str) -> Sequence[str]:
    return (*(UNITS if unit == WORDS else UNITS[::-1]), *_LISTS)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _holds(key: str, first: Any) -> bool:
    """Whether stretches lie there: the first one has a text and begins at a number of seconds; or there is none, as of
    silence."""
    if first is None:
        return key in UNITS
    cells, _ = next(stretches(first, SEGMENTS), ({}, None))
    try:
        return "text" in cells and _time(cells.get("start")) >= 0
    except ValueError:
        return False
