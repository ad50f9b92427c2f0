"""Which entries of a source may be items at all, and what of them may be kept: decided before anything is stored.

An entry whose row does not permit its use is refused unread. Where personal data are masked or refused, neither texts
nor the other columns of a table enter the lake as they are.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from assets.findings import quoted
from assets.names import as_object
from assets.sources.base import Entry
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
    for entry in entries if cleaning.personal_data != "keep" else ():
        if entry.reason is not None:
            entry.message = entry.message and clean_cell(entry.message, cleaning)
            continue
        if entry.text is not None:
            _guard_text(entry, cleaning)
        entry.attributes = _masked(entry.attributes, cleaning)


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
