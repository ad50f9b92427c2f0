"""One pass over items: each is decoded once and gives its clean rows, its feature rows and what filters measure of it,
or the row that says why not.

Pure Arrow to Arrow; reading the bytes (`contents.attach_data`) and writing the tables is the caller's.
"""

import contextlib
import hashlib
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pyarrow as pa

from training import family
from training.family import Choice
from training.filters.base import Filter
from training.media import MediaError
from training.messages import one_line
from training.modalities.base import WHOLE
from training.processor import Processor, package_versions
from training.schema import CLEAN, MEASUREMENTS, QUARANTINE, features_table, fingerprint

CLEAN_STEP, FEATURES_STEP = "clean", "features"  # and the kind of each filter that measures
_ORIGIN = ("item_id", "source", "uri", "member", "row", "sha256")


@dataclass(frozen=True)
class Outcome:
    """What became of `items` input rows: each is in the table of every step it needed, or in quarantine."""

    items: int
    quarantine: pa.Table
    clean: pa.Table
    measurements: pa.Table
    features: pa.Table


@dataclass
class _Rows:
    """The rows that a batch gives, by table."""

    quarantine: list[dict[str, Any]] = field(default_factory=list)
    clean: list[dict[str, Any]] = field(default_factory=list)
    measurements: list[dict[str, Any]] = field(default_factory=list)
    features: list[dict[str, Any]] = field(default_factory=list)


_Child = tuple[str, Any]  # id and content of a part of an item
_Decoded = tuple[dict[str, Any], list[_Child]]  # an item, and its parts that lack features


@dataclass(frozen=True)
class Step:
    """Cleaning, measuring and featurizing of one modality, as a function from a batch to its `Outcome`.

    It can be pickled.
    """

    modality: str
    processor: Processor
    filters: Mapping[str, Filter] = field(default_factory=dict)  # by kind

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """Step -> what its rows are keyed by, beside the content: clean, features, each filter that measures.

        Once for all batches, in whatever process: what they depend on may be edited meanwhile.
        """
        clean = self.processor.clean_fingerprint(self.modality)
        size = self.processor.featurizers[self.modality].decoded_size  # a picture is measured as it was decoded
        measured = {
            kind: fingerprint(
                "measure", family.identity(Choice(kind)), clean, size, f.version, package_versions(f.packages)
            )
            for kind, f in self.filters.items()
            if f.version
        }
        return {CLEAN_STEP: clean, FEATURES_STEP: self.processor.fingerprint(self.modality), **measured}

    def __getstate__(self) -> dict[str, Any]:
        _ = self.fingerprints  # which cross with it
        return {**self.__dict__, "versions": self._versions()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Raises RuntimeError: this process, perhaps of another machine, would make other rows under the same keys."""
        there = state.pop("versions")
        self.__dict__.update(state)
        for package, version in self._versions().items():
            if version != there[package]:
                raise RuntimeError(
                    f"{package} is {version} on {socket.gethostname()} and {there[package]} where the run was started: "
                    "install the same versions on all machines"
                )

    def _versions(self) -> dict[str, str]:
        """Of the packages that decide its rows."""
        steps: tuple[Any, ...] = (self.processor.modalities[self.modality], self.processor.featurizers[self.modality])
        return package_versions(tuple(name for part in (*steps, *self.filters.values()) for name in part.packages))

    def __call__(self, batch: pa.RecordBatch) -> Outcome:
        """`batch` has MANIFEST's columns, `data` (media bytes; for text its UTF-8), and `need`: the steps that lack.

        Content that cannot be used goes to quarantine under the fingerprint of the step that refused it, so that it
        is not tried again; what the limits refuse under one that knows them. Where `data` is null the file could not
        be read (`data_error` says why): the quarantine row has no fingerprint, since another run may find the file.

        Raises:
            RuntimeError: an item that raised anything but MediaError; the message names it.
        """
        rows, waiting, held = _Rows(), list[_Decoded](), 0
        featurizer, modality = self.processor.featurizers[self.modality], self.processor.modalities[self.modality]
        items = batch.select([*_ORIGIN, "data_error", "need"]).to_pylist()
        for item, data in zip(items, batch["data"], strict=True):
            with _naming(item):
                children = self._clean(item, data.as_py(), rows)  # one at a time: media are large
                waiting.append((item, children))
                held += sum(modality.nbytes(content) or featurizer.at_once for _, content in children)
            if held >= featurizer.at_once:
                self._featurize(waiting, rows)
                waiting, held = [], 0
        self._featurize(waiting, rows)
        _check_balance(batch, rows)
        return Outcome(
            batch.num_rows,
            pa.Table.from_pylist(rows.quarantine, QUARANTINE),
            pa.Table.from_pylist(rows.clean, CLEAN[self.modality]),
            pa.Table.from_pylist(rows.measurements, MEASUREMENTS),
            features_table(self.modality, featurizer.tensors, rows.features),
        )

    def _clean(self, item: dict[str, Any], data: bytes | None, rows: _Rows) -> list[_Child]:
        """Adds the clean rows and measurements of an item, or why it is refused; gives its parts that lack features."""
        if data is None:
            error = MediaError("unreadable", item.get("data_error") or "the file came without its content")
            rows.quarantine.append(self._refused(item, "clean", None, error))
            return []
        try:
            children = list(self._children(item["sha256"], data))
            clean, measurements = self._clean_rows(item, children)
        except MediaError as error:
            self._refuse(item, "clean" if CLEAN_STEP in item["need"] else "featurize", error, rows)
            return []
        rows.clean += clean
        rows.measurements += measurements
        return children if FEATURES_STEP in item["need"] else []

    def _featurize(self, waiting: list[_Decoded], rows: _Rows) -> None:
        """Adds the feature rows of items, or why one is refused; the parts of an item stand or fall together."""
        contents = [content for _, children in waiting for _, content in children]
        if not contents:
            return
        try:
            results = iter(self.processor.featurize_all(self.modality, contents))
        except Exception:
            if len(waiting) > 1:  # it is not known which of them it was
                for one in waiting:
                    self._featurize([one], rows)
                return
            with _naming(waiting[0][0]):
                raise
        for item, children in waiting:
            made = [(name, next(results)) for name, _ in children]
            features, key = [], self.fingerprints[FEATURES_STEP]
            for name, result in made:
                if isinstance(result, MediaError):
                    self._refuse(item, "featurize", result, rows)
                    break
                features.append({"id": name, "fingerprint": key, **result})
            else:
                rows.features += features

    def _clean_rows(
        self, item: dict[str, Any], children: list[_Child]
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Rows of the clean table, and of the measurements, as far as they are needed."""
        modality, parent, keys = self.processor.modalities[self.modality], item["sha256"], self.fingerprints
        clean = [
            {"id": name, "parent_id": parent, "fingerprint": keys[CLEAN_STEP], **modality.describe(content)}
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

    def _children(self, parent: str, data: bytes) -> Iterator[_Child]:
        """The parts of an item; a whole one keeps the id of its bytes."""
        for cut, content in self.processor.modalities[self.modality].children(
            self.processor.decode(self.modality, data)
        ):
            yield parent if cut == WHOLE else hashlib.sha256(f"{parent}\0{cut}".encode()).hexdigest(), content

    def _refuse(self, item: dict[str, Any], stage: str, error: MediaError, rows: _Rows) -> None:
        """Under the step that refused the content, so that it is not tried again as long as that is the same."""
        key = self.fingerprints[CLEAN_STEP if stage == "clean" else FEATURES_STEP]
        if error.reason == "too_large":  # whatever step met the limit
            stage, key = "clean", self.processor.refused_fingerprint(self.modality)
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


def _check_balance(batch: pa.RecordBatch, rows: _Rows) -> None:
    """No item disappears: what a step was asked for it made, or it stands in quarantine."""
    refused = {row["item_id"] for row in rows.quarantine}
    clean = {row["parent_id"] for row in rows.clean}
    for item_id, sha256, need in zip(*(batch[n].to_pylist() for n in ("item_id", "sha256", "need")), strict=True):
        assert CLEAN_STEP not in need or sha256 in clean or item_id in refused, f"{item_id} was lost"
    wanted = sum(FEATURES_STEP in need for need in batch["need"].to_pylist())
    assert len(rows.features) + len(refused) >= wanted, "features were lost"
