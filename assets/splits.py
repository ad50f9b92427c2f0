"""Which split a sample belongs to, by column or by hash."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence

from assets.settings import AlignSettings, SplitSettings
from training.schema import SPLITS

_NAMES = {"val": "validation", "valid": "validation", "dev": "validation"} | {name: name for name in SPLITS}


def allowed_splits(values: Mapping[str, str | None], settings: AlignSettings) -> tuple[str, ...]:
    """The splits that all `group` and `held_out` values of a row agree on, in the order of SPLITS.

    Args:
        values: column -> value, the columns named as in `settings`; an absent or empty one has no say.
    """
    allowed = set(SPLITS)
    for column in dict.fromkeys((*settings.group, *settings.held_out)):
        if not (value := values.get(column)):
            continue
        choices: tuple[str, ...] = SPLITS
        if column in settings.held_out:
            listed = settings.test_values.get(column)
            is_test = value in listed if listed else _pick(column, value, SPLITS, settings.split) == "test"
            choices = ("test",) if is_test else ("train", "validation")
        if column in settings.group:
            choices = (_pick(column, value, choices, settings.split),)
        allowed &= set(choices)
    return tuple(split for split in SPLITS if split in allowed)


def split_of(values: Mapping[str, str | None], settings: AlignSettings) -> str:
    """train, validation, test, or excluded where the row's columns ask for different splits.

    Args:
        values: column -> value as in `allowed_splits`, and `sample_id`, which decides where the columns leave a choice.

    Raises:
        ValueError: the split column holds another word, or there is a choice and no `sample_id`.
    """
    if settings.split.column is not None:
        word = (values.get(settings.split.column) or "").strip().lower()
        if word and word not in _NAMES:
            raise ValueError(f"split column {settings.split.column!r} says {word!r}, expected {', '.join(_NAMES)}")
        return _NAMES.get(word, "excluded")
    allowed = allowed_splits(values, settings)
    if len(allowed) < 2:
        return allowed[0] if allowed else "excluded"
    if not (sample_id := values.get("sample_id")):
        raise ValueError(f"sample_id is needed to choose between {', '.join(allowed)}")
    return _pick("sample_id", sample_id, allowed, settings.split)


def assign_splits(rows: Iterable[Mapping[str, str | None]], settings: AlignSettings) -> list[str]:
    """`split_of` each row; a row whose `label` is null is unlabelled."""
    return ["unlabelled" if row["label"] is None else split_of(row, settings) for row in rows]


def _pick(column: str, value: str, choices: Sequence[str], settings: SplitSettings) -> str:
    """One of the choices in proportion to their shares; a pure function of seed, column and value."""
    if len(choices) == 1:
        return choices[0]
    digest = hashlib.sha256(json.dumps([settings.seed, column, value]).encode()).digest()
    shares = [settings.shares[choice] for choice in choices]
    left = int.from_bytes(digest[:8]) / 2**64 * sum(shares)
    for choice, share in zip(choices, shares, strict=True):
        left -= share
        if left < 0:
            return choice
    return choices[0]  # rounding, at the very end of the last share


def pointer(column: str) -> str:
    """JSON pointer (RFC 6901) to a top-level name."""
    return "/" + column.replace("~", "~0").replace("/", "~1")
