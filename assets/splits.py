"""Which split a sample belongs to, by column or by hash."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from json.encoder import encode_basestring_ascii as quote
from typing import Any

from assets.settings import AlignSettings, SplitSettings
from training.schema import SPLITS

_NAMES = {"val": "validation", "valid": "validation", "dev": "validation"} | {name: name for name in SPLITS}


def allowed_splits(values: Mapping[str, str | None], settings: AlignSettings) -> tuple[str, ...]:
    """The splits that all `group` and `held_out` values of a row agree on, in the order of SPLITS.

    Args:
        values: column -> value, the columns named as in `settings`; an absent or empty one has no say.
    """
    return _Splitter(settings).allowed(values)


def split_of(values: Mapping[str, Any], settings: AlignSettings) -> str:
    """train, validation, test, or excluded where the row's columns ask for different splits.

    Args:
        values: column -> value as in `allowed_splits`, and `sample_id`, which decides where the columns leave a choice,
            as do the `split_keys`, if there are any.

    Raises:
        ValueError: the split column holds another word, or there is a choice and no `sample_id`.
    """
    return _Splitter(settings).split(values)


def assign_splits(rows: Iterable[Mapping[str, Any]], settings: AlignSettings) -> list[str]:
    """`split_of` each row; a row whose `label` is null is unlabelled."""
    split = _Splitter(settings).split
    return ["unlabelled" if row["label"] is None else split(row) for row in rows]


class _Splitter:
    """The rule of some settings, with what is the same for all rows worked out once."""

    def __init__(self, settings: AlignSettings) -> None:
        self._settings, self._column = settings, settings.split.column
        self._bound = tuple(dict.fromkeys((*settings.group, *settings.held_out)))
        self._picks: dict[tuple[str, tuple[str, ...]], Callable[[str], str]] = {}

    def allowed(self, values: Mapping[str, str | None]) -> tuple[str, ...]:
        allowed: tuple[str, ...] = SPLITS
        for column in self._bound:
            if value := values.get(column):
                choices = self._choices(column, value)
                allowed = tuple(split for split in allowed if split in choices)
        return allowed

    def _choices(self, column: str, value: str) -> tuple[str, ...]:
        """The splits that one value allows."""
        settings = self._settings
        choices: tuple[str, ...] = SPLITS
        if column in settings.held_out:
            listed = settings.test_values.get(column)
            is_test = value in listed if listed else self._pick(column, value, SPLITS) == "test"
            choices = ("test",) if is_test else ("train", "validation")
        return (self._pick(column, value, choices),) if column in settings.group else choices

    def split(self, values: Mapping[str, Any]) -> str:
        if self._column is not None:
            word = (values.get(self._column) or "").strip().lower()
            if word and word not in _NAMES:
                raise ValueError(f"split column {self._column!r} says {word!r}, expected {', '.join(_NAMES)}")
            return _NAMES.get(word, "excluded")
        allowed = self.allowed(values)
        if len(allowed) < 2:
            return allowed[0] if allowed else "excluded"
        if not (sample_id := values.get("sample_id")):
            raise ValueError(f"sample_id is needed to choose between {', '.join(allowed)}")
        picked = {self._pick("sample_id", key, allowed) for key in (sample_id, *(values.get("split_keys") or ()))}
        return picked.pop() if len(picked) == 1 else "excluded"

    def _pick(self, column: str, value: str, choices: tuple[str, ...]) -> str:
        if (pick := self._picks.get((column, choices))) is None:
            pick = self._picks[column, choices] = _picker(column, choices, self._settings.split)
        return pick(value)


def _picker(column: str, choices: Sequence[str], settings: SplitSettings) -> Callable[[str], str]:
    """Gives a value one of the choices in proportion to their shares; a pure function of seed, column and value."""
    shares = [(choice, settings.shares[choice]) for choice in choices]
    total, start = sum(share for _, share in shares), f"[{settings.seed}, {quote(column)}, "

    def pick(value: str) -> str:
        digest = hashlib.sha256(f"{start}{quote(value)}]".encode()).digest()
        left = int.from_bytes(digest[:8]) / 2**64 * total
        for choice, share in shares:
            left -= share
            if left < 0:
                return choice
        return choices[0]  # rounding, at the very end of the last share

    return pick if len(choices) > 1 else lambda value: choices[0]


def pointer(column: str) -> str:
    """JSON pointer (RFC 6901) to a top-level name."""
    return "/" + column.replace("~", "~0").replace("/", "~1")
