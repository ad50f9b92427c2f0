"""Which entries of a source may be items at all, and what of them may be kept: decided before anything is stored.

An entry whose row does not permit its use is refused unread. Where personal data are masked or refused, neither texts
nor the other columns of a table enter the lake as they are.
"""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from assets.findings import quoted
from assets.names import as_object
from assets.sources.base import Entry
from training.language import clean_text
from training.media import MediaError
from training.personal_data import find
from training.settings import TextCleaning


def permit(entries: Sequence[Entry], require: Mapping[str, Collection[str]]) -> None:
    """Refuses the entries that lack one of the values that a column must have."""
    for entry in entries if require else ():
        if entry.reason is not None:
            continue
        columns = json.loads(entry.attributes)
        for name, allowed in require.items():
            if (value := columns.get(name)) not in allowed:
                said = f"is {quoted(value)}" if value else "is empty or not there"
                _refuse(entry, "not_permitted", f"{name} {said}, and the source requires {' or '.join(allowed)}")
                break


def guard(entries: Sequence[Entry], cleaning: TextCleaning) -> None:
    """Masks personal data in texts and columns, or refuses the entries whose text has some, as the settings say. A text
    that has some is stored as cleaning leaves it; its hash stays that of the original."""
    for entry in entries if cleaning.personal_data != "keep" else ():
        if entry.reason is not None:
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
    """The columns without personal data. A value that is nothing else becomes a name of its own: a group stays one."""
    columns: dict[str, Any] = json.loads(attributes)
    masked = {name: _masked_value(value, cleaning) for name, value in columns.items()}
    return attributes if masked == columns else as_object(masked)


def _masked_value(value: str, cleaning: TextCleaning) -> str:
    found = find(value, cleaning.personal_kinds, cleaning.phone_regions)
    for one in reversed(found):
        whole = (one.start, one.end) == (0, len(value))
        name = f" {hashlib.sha256(value.encode()).hexdigest()[:8]}" if whole else ""
        value = f"{value[: one.start]}[{one.kind.upper()}{name}]{value[one.end :]}"
    return value
