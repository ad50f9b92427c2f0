"""Rows (`training.data`) to the batches that a model takes.

Modality dropout, augmentation and mixing are drawn from generators keyed by (seed, epoch, sample id), never from global
state, so a resumed run sees what the undisturbed one would have seen.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from training.features import FeatureSettings
from training.mixing import mixed
from training.outputs.linear import IGNORED
from training.padding import padded
from training.processor import Row, contents
from training.schema import MODALITIES
from training.seeding import generator
from training.tokenizer import encode
from training.views import TEXTS, Places, most, placed, views

if TYPE_CHECKING:
    from training.variants.base import AnsweringBundle


@dataclass
class Collator:
    """Rows to a batch of tensors, with what `FusionModel.forward` takes.

    present bool (B, N) in the order of `modalities`; for each modality X the values `X` in the form of its features,
    and a mask `X_mask` where the form has one; where rows may have several X, these are of the contents of all rows,
    and `X_rows`, `X_places` (C,) say which row each belongs to and which place of it is its; prompt_ids and prompt_mask
    (B, P), padded on the left; where the prompt names columns, column_ids and column_mask (B, columns, P); with
    `targets`, labels: what it makes of those of the rows.

    Args:
        modalities: those the model reads; the rest of a row is ignored.
        prompt: the modality that the language model reads itself: it needs no features of its own; several texts of
            a row are one prompt, a line each.
        prompt_room: tokens of a prompt that the language model has positions for (`FusionModel.prompt_room`).
        keep: only these are shown to the model, the others are hidden.
        targets: `Output.targets` of the model; None: no labels are made. Rows without a label are an error with it.
        modality_dropout: chance that a present modality is hidden; the last one of a row never is.
        item_dropout: chance that one of several contents of a modality is hidden; the last one never is. Of views the
            place stays empty, else the others move up, as where a row never had it.
        leads: what stands before a name within a template (`training.prompt`); one without stands by itself.
        columns: that the template names.
        several: modality -> contents that a row may have of it, where that is not one, or their views
            (`training.views`).
        seeds: the batch has `seeds` (B,), of each row by what is shown of it, for texts that are drawn.
        augment: modality -> what makes the tensor that is read of the one that is `augmented`, or of all columns, with
            a row's generator; of the prompt also another text (`training.rewriting`).
        teacher: sample id -> x_m* (D,) of the row, for `training.objectives.distillation`; nan in the batch where there
            is none.
        column: sample id -> number of what a column says of the row, for `training.objectives.critic`; IGNORED in the
            batch where it says nothing.
        groups: column and names of the groups that have an adapter (`training.personalization`): the batch then has
            `group` (B,), the number of each row's.
        mixing, cutmix: rows are mixed with one another (`training.mixing`), by so much; 0: they are not.
    """

    tokenizer: PreTrainedTokenizerBase
    features: FeatureSettings
    modalities: tuple[str, ...]
    prompt: str | None = None
    keep: frozenset[str] | None = None
    targets: Callable[[Sequence[str]], Tensor] | None = None
    modality_dropout: float = 0.0
    item_dropout: float = 0.0
    augment: Mapping[str, Callable[[Any, np.random.Generator], np.ndarray]] = field(default_factory=dict)
    teacher: Mapping[str, np.ndarray] = field(default_factory=dict)
    column: Mapping[str, int] = field(default_factory=dict)
    mixing: float = 0.0
    cutmix: float = 0.0
    seed: int = 0
    prompt_room: int | None = None
    leads: Mapping[str, str] = field(default_factory=dict)
    columns: tuple[str, ...] = ()
    several: Mapping[str, Places] = field(default_factory=dict)
    seeds: bool = False
    groups: Mapping[str, Any] = field(default_factory=dict)
    _encoded: dict[tuple[str, bool], list[int]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self._featurizers = {m: self.features.featurizer(m) for m in self.modalities}

    def __call__(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        shown = [self.shown(row) for row in rows]
        batch = {"present": torch.tensor([[m in s for m in self.modalities] for s in shown], dtype=torch.bool)}
        for modality in self.modalities:
            columns = [row[modality] if modality in s else None for row, s in zip(rows, shown, strict=True)]
            if modality == self.prompt:
                ids = [self._prompt(row) if m is not None else [] for m, row in zip(columns, rows, strict=True)]
                batch["prompt_ids"], batch["prompt_mask"] = padded(ids, int(self.tokenizer.pad_token_id), left=True)
            elif modality in self.several:
                batch |= self._several(modality, rows, columns)
            else:
                values, mask = self._featurizers[modality].batch(self._values(modality, rows, columns))
                batch |= {modality: values} | ({} if mask is None else {f"{modality}_mask": mask})
        if self.columns:
            said = [self._encode(row["columns"][name], name) for row in rows for name in self.columns]
            tensors = padded(said, int(self.tokenizer.pad_token_id), left=True)
            batch["column_ids"], batch["column_mask"] = (t.unflatten(0, (len(rows), -1)) for t in tensors)
        if self.groups:
            names = {name: number for number, name in enumerate(self.groups["names"])}
            named = [(row.get("columns") or {}).get(self.groups["column"]) for row in rows]
            batch["group"] = torch.tensor([names.get(name, -1) for name in named])
        if self.seeds:
            batch["seeds"] = torch.tensor([self._seed(row, s) for row, s in zip(rows, shown, strict=True)])
        if self.targets is not None:
            batch["labels"] = self.targets(_labels(rows))
        if self.teacher:
            unknown = np.full_like(next(iter(self.teacher.values())), np.nan)
            known = [self.teacher.get(row["sample_id"], unknown) for row in rows]
            batch["teacher"] = torch.from_numpy(np.stack(known))
        if self.column:
            batch["column"] = torch.tensor([self.column.get(row["sample_id"], IGNORED) for row in rows])
        if self.mixing > 0 or self.cutmix > 0:
            random = generator(self.seed, rows[0]["epoch"], f"{rows[0]['sample_id']} mixing")
            forms = {m: self.features.forms[m] for m in self.modalities}
            batch = mixed(batch, forms, self.mixing, random, self.cutmix)
        return batch

    def _several(
        self, modality: str, rows: Sequence[Row], columns: Sequence[dict[str, Any] | None]
    ) -> dict[str, Tensor]:
        """The contents of all rows, one after the other; a batch without any has one that is hidden."""
        shown = [(n, row) for n, (row, first) in enumerate(zip(rows, columns, strict=True)) if first is not None]
        read = [(n, place, given) for n, row in shown for place, given in self._contents(row, modality)]
        numbers, places, given = zip(*read, strict=True) if read else ((0,), (0,), (None,))
        values, mask = self._featurizers[modality].batch(
            self._values(modality, [rows[n] for n in numbers], given, places)
        )
        at = {f"{modality}_rows": torch.tensor(numbers), f"{modality}_places": torch.tensor(places)}
        return {modality: values} | ({} if mask is None else {f"{modality}_mask": mask}) | at

    def _contents(self, row: Row, modality: str) -> list[tuple[int, dict[str, Any]]]:
        """Those that hold anything and are not hidden, each with its place, in the order of the places. Raises
        ValueError: a row has others than there may be."""
        places, given, read = self.several.get(modality, 1), contents(row, modality), self._read(modality)
        try:
            at = placed(row.get(f"{modality}_views"), len(given), places)
        except ValueError as error:
            who = row.get("sample_id") or "this row"
            raise ValueError(f"{who} {error} ({modality}: align.several)") from None
        ordered = [columns for _, columns in sorted(zip(at, given, strict=True), key=lambda pair: pair[0])]
        kept = [(place, columns) for place, columns in zip(sorted(at), ordered, strict=True) if len(columns[read])]
        if self.item_dropout and len(kept) > 1:
            random = generator(self.seed, row["epoch"], f"{row['sample_id']} {modality} items")
            # One draw for each place, so that what a row lacks does not move the draws of the others.
            draws = random.random(most(places))[[place for place, _ in kept]]
            left = [one for one, draw in zip(kept, draws, strict=True) if draw >= self.item_dropout]
            kept = left or [kept[int(draws.argmax())]]
        return kept if views(places) else list(enumerate(columns for _, columns in kept))

    def _read(self, modality: str) -> str:
        """The column that the model reads of a modality."""
        return "text" if modality == self.prompt else self._featurizers[modality].read

    def shown(self, row: Row) -> list[str]:
        """The modalities of the row that the model sees."""
        present = [m for m in self.modalities if self._has(row, m) and (self.keep is None or m in self.keep)]
        if self.modality_dropout == 0 or len(present) < 2:
            return present
        random = generator(self.seed, row["epoch"], row["sample_id"])
        # One draw for each modality there is, so that what a row lacks does not move the draws of the others.
        draws = dict(zip(MODALITIES, random.random(len(MODALITIES)), strict=True))
        kept = [m for m in present if draws[m] >= self.modality_dropout]
        return kept or [max(present, key=lambda m: draws[m])]

    def _has(self, row: Row, modality: str) -> bool:
        if (columns := row[modality]) is None:
            return False
        if modality in self.several:
            return len(self._contents(row, modality)) > 0
        return len(columns[self._read(modality)]) > 0

    def _seed(self, row: Row, shown: Sequence[str]) -> int:
        """Of what the model reads, not of its name: who asks the same twice gets the same answer."""
        digest = hashlib.blake2b(digest_size=7)
        for m, place, columns in ((name, *given) for name in shown for given in self._contents(row, name)):
            read = columns[self._read(m)]
            content = read.encode() if isinstance(read, str) else np.ascontiguousarray(read).tobytes()
            digest.update(f"{m}{place or ''} {len(content)} ".encode() + content)
        if self.columns:
            digest.update(json.dumps(row["columns"]).encode())
        return int.from_bytes(digest.digest(), "big")

    def _values(
        self,
        modality: str,
        rows: Sequence[Row],
        columns: Sequence[dict[str, Any] | None],
        places: Sequence[int] = (),
    ) -> list[np.ndarray | None]:
        """What the featurizer makes a batch of; in training augmented with a generator of the row's own, and of the
        content's place in it."""
        featurizer = self._featurizers[modality]
        if (change := self.augment.get(modality)) is None:
            return [None if column is None else column[featurizer.read] for column in columns]
        name = featurizer.augmented
        return [
            None if column is None else change(column[name] if name else column, self._random(row, modality, place))
            for row, column, place in zip(rows, columns, places or [0] * len(rows), strict=True)
        ]

    def _random(self, row: Row, modality: str, place: int) -> np.random.Generator:
        """What changes one content of a row is drawn from."""
        return generator(self.seed, row["epoch"], f"{row['sample_id']} {modality}" + (f" {place}" if place else ""))

    def check_prompts(self, rows: Iterable[Row]) -> None:
        """Raises ValueError where a prompt is longer than the language model has positions for."""
        if self.prompt_room is None:
            return
        most = 0 if self.prompt is None else self._featurizers[self.prompt].prompt_tokens  # what is longer is cut
        if self.columns or self.prompt_room < most:
            for row in rows:
                if self.prompt is not None and row[self.prompt] is not None:
                    self._prompt(row)
                else:
                    self._check_room(row, 0)

    def _prompt(self, row: Row) -> list[int]:
        assert self.prompt is not None
        texts, change = self._contents(row, self.prompt), self.augment.get(self.prompt)
        text, most = TEXTS.join(columns["text"] for _, columns in texts), self._featurizers[self.prompt].prompt_tokens
        ids = self._encode(text, self.prompt)[:most]
        self._check_room(row, len(ids))
        if change is None:
            return ids
        rewritten: Any = change.rewritten  # type: ignore[attr-defined]
        text = TEXTS.join(rewritten(columns, self._random(row, self.prompt, place)) for place, columns in texts)
        if self.prompt_room is not None:  # misspelt it may have more tokens
            most = min(most, self.prompt_room - self._column_tokens(row))
        return self._encode(text, self.prompt, keep=False)[:most]

    def _column_tokens(self, row: Row) -> int:
        return sum(len(self._encode(row["columns"][name], name)) for name in self.columns)

    def _check_room(self, row: Row, count: int) -> None:
        """Raises ValueError where a text of so many tokens and the columns of a row are more than there is room for."""
        if self.prompt_room is None:
            return
        count += self._column_tokens(row)
        if count > self.prompt_room:
            what = " and ".join([*([self.prompt] if self.prompt else []), *(f"column {c!r}" for c in self.columns)])
            cut = f"features.{self.prompt}.max_tokens to {max(0, self.prompt_room)} or less (the first are read)"
            raise ValueError(
                f"the {what} of {row.get('sample_id') or 'this row'} has {count} tokens, and the language model has "
                f"positions for {self.prompt_room} beside soft tokens and answer: shorten it, "
                f"{f'set {cut}, ' if self.prompt else ''}or take another model.llm"
            )

    def _encode(self, text: str, name: str, keep: bool = True) -> list[int]:
        """Token ids of what `name` stands for; by itself with the special tokens that the tokenizer puts around it."""
        # Texts recur over rows and epochs. Long ones seldom do, and would fill the memory.
        key = self.leads.get(name, "") + text, name not in self.leads
        if (ids := self._encoded.get(key)) is None:
            ids = encode(self.tokenizer, key[0], around=key[1]) if text else []
            if keep and len(text) < 1000 and len(self._encoded) < 50_000:
                self._encoded[key] = ids
        return ids


def make_collator(
    model: "AnsweringBundle",
    tokenizer: PreTrainedTokenizerBase,
    features: FeatureSettings,
    keep: frozenset[str] | None = None,
) -> Collator:
    """The collator that makes batches for `model`, without labels and dropout."""
    config = model.config
    return Collator(
        tokenizer,
        features,
        tuple(config.modalities),
        config.prompt,
        keep,
        prompt_room=model.prompt_room,
        leads=config.leads,
        columns=config.columns,
        several=config.several,
        seeds=bool(config.generation.get("do_sample")),
        groups=config.groups,
    )


def _labels(rows: Sequence[Row]) -> list[str]:
    for row in rows:
        if row["label"] is None:
            raise ValueError(f"sample {row['sample_id']} has no label: leave unlabelled rows out of training")
    return [row["label"] for row in rows]
