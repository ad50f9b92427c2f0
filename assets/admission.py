"""Which entries of a source may be items at all, and what of them may be kept: decided before anything is stored.

An entry whose row does not permit its use is refused unread. Where personal data are masked or refused, neither texts
nor the other columns of a table enter the lake as they are.
"""

import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from assets.findings import quoted
from assets.names import as_object
from assets.segments.base import NUMBERED
from assets.sources.base import Entry
from training import personal_data
from training.language import clean_cell, clean_text
from training.media import MediaError
from training.settings import TextCleaning


def permit(entries: Sequence[Entry], require: Mapping[str, Collection[str]], cleaning: TextCleaning) -> None:
    """Refuses the entries that lack one of the values that a column must have; what they have is told as cleaning
    leaves it."""
    for entry in entries if require else ():
        if entry.reason is not None:
            continue
        columns = json.loads(entry.attributes)
        for name, allowed in require.items():
            if (value := columns.get(name)) not in allowed:
                said = f"is {quoted(clean_cell(value, cleaning))}" if value else "is empty or not there"
                _refuse(entry, "not_permitted", f"{name} {said}, and the source requires {' or '.join(allowed)}")
                break


def guard(entries: Sequence[Entry], cleaning: TextCleaning) -> None:
    """Masks personal data in texts and columns, or refuses the entries whose text has some, as the settings say. A text
    that has some is stored as cleaning leaves it; its hash stays that of the original. Why an entry is refused may
    quote what it holds: that is masked, too."""
    if cleaning.personal_data != "keep":
        for stretches in _recordings(entries):
            _guard_together(stretches, cleaning)
    for entry in entries if cleaning.personal_data != "keep" else ():
        if entry.reason is not None:
            entry.message = entry.message and clean_cell(entry.message, cleaning)
            continue
        if entry.text is not None:
            _guard_text(entry, cleaning)
        entry.attributes = _masked(entry.attributes, cleaning)


_Stretch = tuple[Entry, dict[str, str]]  # and its columns


def _recordings(entries: Sequence[Entry]) -> Iterator[list[_Stretch]]:
    """The entries that follow each other in one recording, such as its words, where they are several."""
    stretches = ((entry, json.loads(entry.attributes)) for entry in entries if entry.reason is None)
    for name, together in itertools.groupby(stretches, _recording):
        if name is not None and len(listed := list(together)) > 1:
            yield listed


def _recording(stretch: _Stretch) -> tuple[str | None, ...] | None:
    """What stretches of one recording have in common; None: it is none of several."""
    entry, columns = stretch
    if columns.keys() >= {"number", "start", "end"}:  # of assets.formats.cues; the others may be the key
        recording = columns.get("file", entry.key)
        return entry.uri, entry.member, recording, columns.get("tier"), columns.get("channel")
    found = re.fullmatch(NUMBERED, entry.cut or "")
    return None if found is None else (entry.uri, entry.member, found["all"])


def _guard_together(stretches: Sequence[_Stretch], cleaning: TextCleaning) -> None:
    """What only the stretches of a recording hold together, such as a number of which each has a digit, is masked in
    all that have a part of it; a text is then known by what is left, since the same word alone is no such part."""
    texts = [columns.get("text") if entry.text is None else entry.text for entry, columns in stretches]
    joined = " ".join(text or "" for text in texts)
    found = personal_data.find(joined, cleaning.personal_kinds, cleaning.phone_regions)
    start = 0
    for (entry, columns), text in zip(stretches, texts, strict=True):
        end = start + len(text or "")
        spread = [one for one in found if one.start < end and one.end > start and (one.start < start or one.end > end)]
        masked = text or ""
        for one in reversed(spread):
            parts = masked[: max(0, one.start - start)], f"[{one.kind.upper()}]", masked[one.end - start :]
            masked = "".join(parts)
        start = end + 1
        if not spread:
            continue
        if entry.text is None:
            entry.attributes = as_object(columns | {"text": masked})
        elif cleaning.personal_data == "quarantine":
            words = personal_data.said(Counter(one.kind for one in spread))
            _refuse(entry, "personal_data", f"the text holds a part of personal data ({words}) that goes on beside it")
            entry.text = None
        else:
            entry.text, entry.sha256 = masked, hashlib.sha256(masked.encode()).hexdigest()


def _guard_text(entry: Entry, cleaning: TextCleaning) -> None:
    assert entry.text is not None
    try:
        cleaned = clean_text(entry.text, cleaning)
    except MediaError as error:
        if error.reason == "personal_data":
            _refuse(entry, error.reason, str(error))
            entry.text = None
        return  # what is wrong else the clean step says
    if cleaned.personal_data:
        entry.text = cleaned.text


def _refuse(entry: Entry, reason: str, message: str) -> None:
    """As `Entry.refuse`; of a text by its line."""
    entry.refuse(reason, message)
    if entry.text is not None and entry.listing:
        entry.message = f"{entry.listing}: {message}"


def _masked(attributes: str, cleaning: TextCleaning) -> str:
    """The columns without personal data."""
    columns: dict[str, Any] = json.loads(attributes)
    masked = {name: clean_cell(value, cleaning) for name, value in columns.items()}
    return attributes if masked == columns else as_object(masked)
