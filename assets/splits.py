"""Which split a sample belongs to, by column or by hash."""

import hashlib
from collections.abc import Mapping, Sequence
from functools import reduce
from json.encoder import encode_basestring_ascii as quote
from operator import add
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from assets.settings import AlignSettings
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
            as do the `split_keys`, if there are any; where they agree, `held` goes before them: the split that what the
            row is tied to has had so far, if the columns allow it.

    Raises:
        ValueError: the split column holds another word, or there is a choice and no `sample_id`.
    """
    return _Splitter(settings).split(values)


def assign_splits(columns: Mapping[str, pa.Array], settings: AlignSettings) -> pa.Array:
    """`split_of` each row; a row whose `label` is null is unlabelled.

    Args:
        columns: what `split_of` reads of a row, each as strings (`split_keys` as lists of them), and `label`; null or
            left out is a `held` that is none.
    """
    splits = np.full(len(columns["label"]), "unlabelled", object)
    if labelled := len(columns["label"]) - columns["label"].null_count:
        is_labelled = pc.is_valid(columns["label"])
        some = {name: c if labelled == len(c) else c.filter(is_labelled) for name, c in columns.items()}
        splits[is_labelled.to_numpy(zero_copy_only=False)] = _Splitter(settings).splits(some)
    return pa.array(splits, pa.string())


class _Splitter:
    """The rule of some settings, with what is the same for all rows worked out once."""

    def __init__(self, settings: AlignSettings) -> None:
        self._settings, self._column = settings, settings.split.column
        self._bound = tuple(dict.fromkeys((*settings.group, *settings.held_out)))

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
            return self._said(values.get(self._column))
        allowed = self.allowed(values)
        if len(allowed) < 2:
            return allowed[0] if allowed else "excluded"
        if not (sample_id := values.get("sample_id")):
            raise ValueError(f"sample_id is needed to choose between {', '.join(allowed)}")
        picked = {self._pick("sample_id", key, allowed) for key in (sample_id, *(values.get("split_keys") or ()))}
        held = values.get("held")
        return "excluded" if len(picked) > 1 else held if held in allowed else picked.pop()

    def splits(self, columns: Mapping[str, pa.Array]) -> np.ndarray:
        """`split` of all rows at once: what is asked of a value is asked once of each that there is."""
        if self._column is not None:
            words, numbers = _distinct(columns[self._column])
            return np.array([self._said(word) for word in words], object)[numbers]
        rows = len(columns["sample_id"])
        allowed = np.ones((rows, len(SPLITS)), bool)
        for column in self._bound:
            values, numbers = _distinct(columns[column])
            choices = [self._choices(column, value) if value else SPLITS for value in values]
            allowed &= np.array([[split in of for split in SPLITS] for of in choices], bool)[numbers]
        picked = np.where(allowed.any(axis=1), allowed.argmax(axis=1), -1)  # an index of SPLITS, or none
        (open_rows,) = np.nonzero(allowed.sum(axis=1) > 1)
        if len(open_rows):
            picked[open_rows] = self._picks(columns, open_rows, allowed)
        return np.array([*SPLITS, "excluded"], object)[picked]

    def _picks(self, columns: Mapping[str, pa.Array], rows: np.ndarray, allowed: np.ndarray) -> np.ndarray:
        """Of the rows (by number) that have a choice, what the hash picks: an index of SPLITS, or -1 for excluded."""
        keys = columns["sample_id"].take(pa.array(rows))
        if pc.any(pc.equal(pc.fill_null(keys, ""), "")).as_py():
            raise ValueError("sample_id is needed to choose between splits")
        picked = self._picked(keys, allowed[rows])
        further = columns.get("split_keys")
        if further is not None and further.null_count < len(further):
            further = further.take(pa.array(rows))
            of = pc.list_parent_indices(further).to_numpy()
            others = self._picked(pc.list_flatten(further), allowed[rows][of])
            picked[of[others != picked[of]]] = -1
        if (held := columns.get("held")) is not None:
            before = pc.fill_null(pc.index_in(held.take(pa.array(rows)), pa.array(SPLITS)), -1).to_numpy()
            stays = (picked >= 0) & (before >= 0) & allowed[rows, before]
            picked[stays] = before[stays]
        return picked

    def _picked(self, keys: pa.Array, allowed: np.ndarray) -> np.ndarray:
        """`_pick` of each key among what is allowed to it (rows x SPLITS): an index of SPLITS."""
        values, numbers = _distinct(keys)
        seed = self._settings.split.seed
        places = np.array([_place(seed, "sample_id", value or "") for value in values])[numbers]
        shares = np.where(allowed, [self._settings.split.shares[split] for split in SPLITS], 0.0)
        left = places * reduce(add, shares.T)
        picked = allowed.argmax(axis=1)  # rounding, at the very end of the last share
        is_open = np.ones(len(picked), bool)
        for n in range(len(SPLITS)):
            left = left - shares[:, n]
            is_here = is_open & allowed[:, n] & (left < 0)
            picked[is_here], is_open = n, is_open & ~is_here
        return picked

    def _said(self, word: str | None) -> str:
        """The split that a cell of the split column names."""
        word = (word or "").strip().lower()
        if word and word not in _NAMES:
            raise ValueError(f"split column {self._column!r} says {word!r}, expected {', '.join(_NAMES)}")
        return _NAMES.get(word, "excluded")

    def _pick(self, column: str, value: str, choices: Sequence[str]) -> str:
        """One of the choices in proportion to their shares; a pure function of seed, column and value."""
        if len(choices) == 1:
            return choices[0]
        shares = [self._settings.split.shares[choice] for choice in choices]
        left = _place(self._settings.split.seed, column, value) * reduce(add, shares)
        for choice, share in zip(choices, shares, strict=True):
            left -= share
            if left < 0:
                return choice
        return choices[0]  # rounding, at the very end of the last share


def _place(seed: int, column: str, value: str) -> float:
    """Where in [0, 1) a value falls."""
    digest = hashlib.sha256(f"[{seed}, {quote(column)}, {quote(value)}]".encode()).digest()
    return int.from_bytes(digest[:8]) / 2**64


def _distinct(values: pa.Array) -> tuple[list[str | None], np.ndarray]:
    """The values that there are, and for each row the number of its own."""
    encoded = pc.dictionary_encode(values, null_encoding="encode")
    return encoded.dictionary.to_pylist(), encoded.indices.to_numpy(zero_copy_only=False)


def pointer(column: str) -> str:
    """JSON pointer (RFC 6901) to a top-level name."""
    return "/" + column.replace("~", "~0").replace("/", "~1")
