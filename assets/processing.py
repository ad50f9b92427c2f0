"""One pass over items: each is decoded once and gives its clean rows, its feature rows and what filters measure of it,
or the row that says why not.

Pure Arrow to Arrow; reading the bytes (`contents.attach_data`) and writing the tables is the caller's.
"""

import contextlib
import socket
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from assets.decoder import decode_each
from assets.segments.base import Segments, content_id, found_by
from training import family
from training.family import Choice
from training.filters.base import Filter
from training.media import MediaError
from training.messages import one_line
from training.processor import Processor, package_versions
from training.schema import CLEAN, MEASUREMENTS, QUARANTINE, SIGNATURES, features_table, fingerprint
from training.signatures.base import Signature

# And the kind of each filter that measures. Features of one row only are a step, too (`features_step`).
CLEAN_STEP, FEATURES_STEP, SIGNATURE_STEP, LIMITS = "clean", "features", "signature", "limits"
_ORIGIN = ("item_id", "source", "uri", "member", "row", "sha256", "cut")
# What is asked of the bytes of one file: each part of them that is an item (`cut`; null: the whole), where it stands,
# and the steps that it lacks.
_STRINGS = ((name, pa.string()) for name in ("item_id", "source", "uri", "member", "cut"))
PARTS = pa.list_(pa.struct([*_STRINGS, ("row", pa.int64()), ("need", pa.list_(pa.string()))]))


@dataclass(frozen=True)
class Outcome:
    """What became of `items`: each is in the table of every step it needed, or in quarantine."""

    items: int
    needed: Mapping[str, int]  # step -> how many of them it was asked for
    quarantine: pa.Table
    clean: pa.Table
    measurements: pa.Table
    signatures: pa.Table
    features: pa.Table


@dataclass
class _Rows:
    """The rows that a batch gives, by table."""

    quarantine: list[dict[str, Any]] = field(default_factory=list)
    clean: list[dict[str, Any]] = field(default_factory=list)
    measurements: list[dict[str, Any]] = field(default_factory=list)
    signatures: list[dict[str, Any]] = field(default_factory=list)
    features: list[dict[str, Any]] = field(default_factory=list)
    known: int = 0  # parts that have features already
    featurized: int = 0  # parts that have got theirs


_Cuts = dict[str, Sequence[str] | MediaError]  # by what they have in common (`found_by`)
_Child = tuple[str, Any]  # id and content of a part of an item
_Lacking = tuple[str, Any, tuple[str, ...]]  # and the tensors that it lacks
_Decoded = tuple[dict[str, Any], list[_Lacking]]  # an item, and the contents of it that lack features


def features_step(tensors: Sequence[str]) -> str:
    """The making of the feature rows that hold these tensors, where not all of a content's are made."""
    return f"{FEATURES_STEP} {'+'.join(tensors)}"


@dataclass(frozen=True)
class Step:
    """Cleaning, measuring and featurizing of one modality, as a function from a batch to its `Outcome`.

    It can be pickled.
    """

    modality: str
    processor: Processor
    filters: Mapping[str, Filter] = field(default_factory=dict)  # by kind
    segments: Mapping[str, Segments] = field(default_factory=dict)  # by what the manifest calls them as a cut
    signature: tuple[str, Signature] | None = None  # kind, and what signs

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """Step -> what its rows are keyed by, beside the content: clean, each row of features (`features_step`), the
        signature, filters that measure.

        Once for all batches, in whatever process: what they depend on may be edited meanwhile.
        """
        measured = {kind: fingerprint("measure", *parts.values()) for kind, parts in self._measured().items()}
        features = {step: self.processor.fingerprint(self.modality, row[0]) for step, row in self.feature_rows.items()}
        return {CLEAN_STEP: self.processor.clean_fingerprint(self.modality), **features, **measured}

    @cached_property
    def feature_rows(self) -> dict[str, tuple[str, ...]]:
        """`features_step` -> tensors, of each feature row that a content has."""
        return {features_step(row): row for row in self.processor.features.rows(self.modality)}

    @cached_property
    def refusing(self) -> str:
        """What is refused by featurizing is keyed by: how features are compressed is no matter to it."""
        return self.processor.refusing_fingerprint(self.modality)

    def parts(self) -> dict[str, tuple[str, dict[str, Any]]]:
        """Fingerprint -> the step that it names, and what it is made of; those of what limits refuse, too."""
        processor, modality = self.processor, self.modality
        parts = {CLEAN_STEP: processor.clean_parts(modality), **self._measured()}
        # What features are refused by, where that is another one, then what they are stored by.
        named = {self.refusing: (FEATURES_STEP, processor.refusing_parts(modality))}
        for step, row in self.feature_rows.items():
            named[self.fingerprints[step]] = (FEATURES_STEP, processor.parts(modality, row[0]))
        named |= {self.fingerprints[step]: (step, of) for step, of in parts.items()}
        limits = (*processor.limits_of(modality), None)
        refused = {n: (LIMITS, processor.refused_parts(modality, n)) for n in limits}
        return named | {processor.refused_fingerprint(modality, n): of for n, of in refused.items()}

    def _measured(self) -> dict[str, dict[str, Any]]:
        """Each filter that measures, and the signature -> what its fingerprint is made of."""
        clean = self.processor.clean_fingerprint(self.modality)
        size = self.processor.featurizers[self.modality].decoded_size  # a picture is measured as it was decoded
        measuring: list[tuple[str, str, Filter | Signature]]
        measuring = [(kind, kind, f) for kind, f in self.filters.items() if f.version]
        measuring += [] if self.signature is None else [(SIGNATURE_STEP, *self.signature)]
        return {
            step: {
                "code": family.identity(Choice(kind)),
                "clean": clean,
                "decoded_size": size,
                "version": of.version,
                "packages": package_versions(of.packages),
            }
            for step, kind, of in measuring
        }

    def __getstate__(self) -> dict[str, Any]:
        _ = self.fingerprints, self.refusing  # which cross with it
        return {**self.__dict__, "deciding": self._deciding()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Raises RuntimeError: this process, perhaps of another machine, would make other rows under the same keys."""
        there = state.pop("deciding")
        self.__dict__.update(state)
        for name, value in self._deciding().items():
            if value != there[name]:
                raise RuntimeError(
                    f"{name} is {value} on {socket.gethostname()} and {there[name]} where the run was started: "
                    "install the same packages, and lay the same models, on all machines"
                )

    def _deciding(self) -> dict[str, Any]:
        """Versions of the packages, and contents of the models, that decide its rows."""
        steps: tuple[Any, ...] = (self.processor.modalities[self.modality], self.processor.featurizers[self.modality])
        steps = *steps, *self.filters.values(), *self.segments.values(), *(self.signature or ())[1:]
        models: tuple[Any, ...] = (self.processor.featurizers[self.modality], *self.segments.values())
        contents = {f"the model of {type(model).__name__}": model.identity() for model in models}
        return package_versions(tuple(name for part in steps for name in part.packages)) | contents

    def __call__(self, batch: pa.RecordBatch) -> Outcome:
        """`batch` has a row for each file: MANIFEST's columns, `data` (media bytes; for text its UTF-8), `parts`; where
        some are found by words, `words`: what these have in common -> the words of all; and where some of its parts
        have features already, `featured_parts`, id and fingerprint of these in one.

        Content that cannot be used goes to quarantine under the fingerprint of the step that refused it, so that it
        is not tried again; what the limits refuse under one that knows them. Where `data` is null the file could not
        be read (`data_error` says why): the quarantine row has no fingerprint, since another run may find the file.

        Raises:
            RuntimeError: an item that raised anything but MediaError; the message names it.
        """
        rows, waiting, held = _Rows(), list[_Decoded](), 0
        featurizer, modality = self.processor.featurizers[self.modality], self.processor.modalities[self.modality]
        names = [*_ORIGIN, "data_error", "parts", *({"words", "featured_parts"} & set(batch.schema.names))]
        listed = batch.select(names).to_pylist()
        items: list[dict[str, Any]] = []
        for row in listed:
            row["words"] = dict(row.get("words") or ())
            row["featured_parts"] = frozenset(row.get("featured_parts") or ())
            items += [row | part for part in row["parts"]]
        for alike, content in self._contents(batch["data"], listed, rows):
            cuts: _Cuts = {}
            for item in alike:
                with _naming(item):
                    waiting.append((item, self._clean(item, content, cuts, rows)))
            held += modality.nbytes(content) or featurizer.at_once  # its parts are views of it
            del content
            if held >= featurizer.at_once:
                self._featurize(waiting, rows)
                waiting, held = [], 0
        self._featurize(waiting, rows)
        _check_balance(items, rows)
        return Outcome(
            len(items),
            Counter(step for item in items for step in item["need"]),
            pa.Table.from_pylist(rows.quarantine, QUARANTINE),
            pa.Table.from_pylist(rows.clean, CLEAN[self.modality]),
            pa.Table.from_pylist(rows.measurements, MEASUREMENTS),
            pa.Table.from_pylist(rows.signatures, SIGNATURES),
            features_table(self.modality, featurizer.tensors, rows.features),
        )

    def _decoded_alike(self, items: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
        """The parts of one file, those together that one decoding serves: a whole picture may be decoded smaller than
        it is, and must have the same features whether something is cut out of it or not."""
        if self.processor.featurizers[self.modality].decoded_size is None:
            return [items]
        groups = ([item for item in items if (item["cut"] is None) == is_whole] for is_whole in (True, False))
        return [group for group in groups if group]

    def _contents(
        self, data: pa.LargeBinaryArray, listed: list[dict[str, Any]], rows: _Rows
    ) -> Iterator[tuple[list[dict[str, Any]], Any]]:
        """Each content that can be had, with the items that are it or parts of it; the others are refused.

        Args:
            data: of each row of `listed`; few are copied, and few contents held, at once: media are large.
        """
        asked: list[tuple[int, list[dict[str, Any]]]] = []
        for n, row in enumerate(listed):
            if data[n].is_valid:
                asked += [(n, alike) for alike in self._decoded_alike([row | part for part in row["parts"]])]
                continue
            error = MediaError("unreadable", row.get("data_error") or "the file came without its content")
            rows.quarantine += [self._refused(row | part, "clean", None, error) for part in row["parts"]]
        processor, modality = self.processor, self.modality
        sizes = (processor.decoded_size(modality, to_cut=alike[0]["cut"] is not None) for _, alike in asked)
        files = ((_cell(data, n), size) for (n, _), size in zip(asked, sizes, strict=True))
        answers = decode_each(processor.modalities[modality], files, processor.limits)
        for (n, alike), answer in zip(asked, answers, strict=True):
            if isinstance(answer, MediaError):
                for item in alike:
                    self._refuse(item, "clean" if CLEAN_STEP in item["need"] else "featurize", answer, rows)
            elif isinstance(answer, Exception):
                with _naming(listed[n]):
                    raise answer
            else:
                yield alike, answer

    def _clean(self, item: dict[str, Any], content: Any, cuts: _Cuts, rows: _Rows) -> list[_Lacking]:
        """Adds the clean rows, measurements and signatures of an item, or why it is refused; gives its parts that lack
        features."""
        try:
            children = list(self._children(item, content, cuts))
            clean, measurements = self._clean_rows(item, children)
        except MediaError as error:
            self._refuse(item, "clean" if CLEAN_STEP in item["need"] else "featurize", error, rows)
            return []
        rows.clean += clean
        rows.measurements += measurements
        if self.signature is not None and SIGNATURE_STEP in item["need"]:
            kind, signature = self.signature
            key = {"modality": self.modality, "kind": kind, "fingerprint": self.fingerprints[SIGNATURE_STEP]}
            rows.signatures += [{"id": name, **key, "value": signature.sign(child)} for name, child in children]
        if not (steps := self._feature_steps(item)):
            return []
        lacking = []
        for name, child in children:
            there = item["featured_parts"]
            wanted = [self.feature_rows[step] for step in steps if f"{name}{self.fingerprints[step]}" not in there]
            if wanted:
                lacking.append((name, child, tuple(tensor for row in wanted for tensor in row)))
            else:
                rows.known += 1
        return lacking

    def _feature_steps(self, item: dict[str, Any]) -> list[str]:
        """Those that an item needs."""
        return [step for step in self.feature_rows if FEATURES_STEP in item["need"] or step in item["need"]]

    def _featurize(self, waiting: list[_Decoded], rows: _Rows) -> None:
        """Adds the feature rows of items, or why one is refused; the parts of an item stand or fall together."""
        asked: dict[tuple[str, ...], list[Any]] = {}
        for _, children in waiting:
            for _, content, tensors in children:
                asked.setdefault(tensors, []).append(content)
        featurize = self.processor.featurize_all
        try:
            results = {tensors: iter(featurize(self.modality, some, tensors)) for tensors, some in asked.items()}
        except Exception:
            if len(waiting) > 1:  # it is not known which of them it was
                for one in waiting:
                    self._featurize([one], rows)
                return
            with _naming(waiting[0][0]):
                raise
        for item, children in waiting:
            made = [(name, tensors, next(results[tensors])) for name, _, tensors in children]
            features: list[dict[str, Any]] = []
            for name, tensors, result in made:
                if isinstance(result, MediaError):
                    self._refuse(item, "featurize", result, rows)
                    break
                features += self._rows_of(name, tensors, result)
            else:
                rows.features += features
                rows.featurized += len(made)

    def _rows_of(self, name: str, tensors: Collection[str], made: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Of the content of that name, the rows that hold these tensors."""
        every = self.processor.featurizers[self.modality].tensors
        extras = {column: value for column, value in made.items() if column not in every}
        for step, row in self.feature_rows.items():
            if row[0] in tensors:
                key = {"id": name, "fingerprint": self.fingerprints[step]}
                yield key | extras | {tensor: made[tensor] for tensor in row}

    def _clean_rows(
        self, item: dict[str, Any], children: list[_Child]
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Rows of the clean table, and of the measurements, as far as they are needed."""
        modality, parent, keys = self.processor.modalities[self.modality], item["sha256"], self.fingerprints
        clean = [
            {"id": name, "parent_id": parent, "cut": item["cut"], "fingerprint": keys[CLEAN_STEP]}
            | modality.describe(content)
            for name, content in children
            if CLEAN_STEP in item["need"]
        ]
        measurements = [
            {"id": name, "modality": self.modality, "filter": kind, "fingerprint": keys[kind]}
            | {"value": _measured(self.filters[kind], content)}
            for kind in item["need"]
            if kind in self.filters
            for name, content in children
        ]
        return clean, measurements

    def _children(self, item: dict[str, Any], content: Any, cuts: _Cuts) -> Iterator[_Child]:
        """What an item consists of; a whole one keeps the id of its bytes."""
        parent, cut = item["sha256"], item["cut"]
        if cut is None:
            yield parent, content
            return
        for one in self._parts(cut, content, item["words"], cuts):
            yield content_id(parent, one), self.processor.modalities[self.modality].part(content, one)

    def _parts(self, cut: str, content: Any, words: Mapping[str, Sequence[str]], cuts: _Cuts) -> Sequence[str]:
        """The parts that a cut stands for. Args: `cuts` keeps what was found in this content, or why nothing was."""
        name, together, number = found_by(cut)
        if name not in self.segments:
            return [cut]
        if together not in cuts:
            try:
                cuts[together] = self.segments[name].cuts(content, words.get(together, ()))
            except MediaError as error:
                cuts[together] = error
        found = cuts[together]
        if isinstance(found, MediaError):
            raise found
        return found if number is None else found[number - 1 : number]

    def _refuse(self, item: dict[str, Any], stage: str, error: MediaError, rows: _Rows) -> None:
        """Under the step that refused the content, so that it is not tried again as long as that is the same."""
        key: str | None = self.fingerprints[CLEAN_STEP]
        if stage != "clean":
            key = self.refusing
        if error.reason in ("too_large", "too_slow"):  # whatever step met the limit
            stage, key = "clean", self.processor.refused_fingerprint(self.modality, error.limit)
        elif error.reason == "killed":  # which says nothing of the content
            stage, key = "clean", None
        rows.quarantine.append(self._refused(item, stage, key, error))

    def _refused(self, item: dict[str, Any], stage: str, key: str | None, error: MediaError) -> dict[str, Any]:
        return {name: item[name] for name in _ORIGIN} | {
            "stage": stage,
            "outcome": "quarantined",
            "reason": error.reason,
            "message": one_line(f"{origin(item)}: {error}"),
            "modality": self.modality,
            "fingerprint": key,
        }


@contextlib.contextmanager
def _naming(item: dict[str, Any]) -> Iterator[None]:
    """A fault of the code, not known of the item, is no reason to refuse it for good: it ends the step, and says where
    it arose."""
    try:
        yield
    except Exception as error:
        raise RuntimeError(one_line(f"{origin(item)}: {type(error).__name__}: {error}")) from error


def _cell(column: pa.LargeBinaryArray, n: int) -> bytes:
    """One cell that is not null; a scalar of Arrow's would be another copy of it."""
    cell = column.slice(n, 1)
    _, offsets, values = cell.buffers()
    start, end = np.frombuffer(offsets, np.int64)[cell.offset : cell.offset + 2].tolist()
    return values.slice(start, end - start).to_pybytes() if end > start else b""


def _measured(rule: Filter, content: Any) -> float | None:
    """None where it cannot be measured: no fault of the content in itself, which other filters may let pass."""
    try:
        return rule.measure(content)
    except MediaError:
        return None


def origin(item: dict[str, Any]) -> str:
    """Where an item comes from, for a person: file, member of the archive, row of the table."""
    where = item["uri"] or item["item_id"]
    where += f"/{item['member']}" if item["member"] else ""
    return where + (f", row {item['row']}" if item["row"] is not None else "")


def _check_balance(items: list[dict[str, Any]], rows: _Rows) -> None:
    """No item disappears: what a step was asked for it made, or it stands in quarantine."""
    refused = {row["item_id"] for row in rows.quarantine}
    clean = {(row["parent_id"], row["cut"]) for row in rows.clean}
    for item in items:
        is_there = (item["sha256"], item["cut"]) in clean or item["item_id"] in refused
        assert CLEAN_STEP not in item["need"] or is_there, f"{item['item_id']} was lost"
    wanted = sum(any(step.partition(" ")[0] == FEATURES_STEP for step in item["need"]) for item in items)
    assert rows.featurized + rows.known + len(refused) >= wanted, "features were lost"
