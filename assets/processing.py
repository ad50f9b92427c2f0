"""One pass over items: each is decoded once and gives its clean rows, its feature rows and what filters measure of it,
or the row that says why not.

Pure Arrow to Arrow; reading the bytes (`contents.attach_data`) and writing the tables is the caller's.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pyarrow as pa

from training import catalog
from training.catalog import Choice
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
                "measure", catalog.identity(Choice(kind)), clean, size, f.version, package_versions(f.packages)
            )
            for kind, f in self.filters.items()
            if f.version
        }
        return {CLEAN_STEP: clean, FEATURES_STEP: self.processor.fingerprint(self.modality), **measured}

    def __call__(self, batch: pa.RecordBatch) -> Outcome:
        """`batch` has MANIFEST's columns, `data` (media bytes; for text its UTF-8), and `need`: the steps that lack.

        Content that cannot be used goes to quarantine under the fingerprint of the step that refused it, so that it
        is not tried again; what the limits refuse under one that knows them. Where `data` is null the file could not
        be read (`data_error` says why): the quarantine row has no fingerprint, since another run may find the file.

        Raises:
            RuntimeError: an item that raised anything but MediaError; the message names it.
        """
        rows, keys = _Rows(), self.fingerprints
        items = batch.select([*_ORIGIN, "data_error", "need"]).to_pylist()
        for item, data in zip(items, batch["data"], strict=True):
            item["data"] = data.as_py()  # one at a time: media are large
            try:
                self._process(item, keys, rows)
            except Exception as error:  # a fault of the code, not known of the item: no reason to refuse it for good
                raise RuntimeError(one_line(f"{origin(item)}: {type(error).__name__}: {error}")) from error
            del item["data"]
        _check_balance(batch, rows)
        featurizer = self.processor.featurizers[self.modality]
        return Outcome(
            batch.num_rows,
            pa.Table.from_pylist(rows.quarantine, QUARANTINE),
            pa.Table.from_pylist(rows.clean, CLEAN[self.modality]),
            pa.Table.from_pylist(rows.measurements, MEASUREMENTS),
            features_table(self.modality, featurizer.tensors, rows.features),
        )

    def _process(self, item: dict[str, Any], keys: dict[str, str], rows: _Rows) -> None:
        """The rows of one item; its children stand or fall together."""
        if item["data"] is None:
            error = MediaError("unreadable", item.get("data_error") or "the file came without its content")
            rows.quarantine.append(self._refused(item, "clean", None, error))
            return
        need = item["need"]
        stage = "clean" if CLEAN_STEP in need else "featurize"
        results = _Rows()
        try:
            children = list(self._children(item))
            results.clean, results.measurements = self._clean_rows(item, children, keys)
            stage = "featurize"
            results.features = [
                self._features(*child, keys[FEATURES_STEP]) for child in children if FEATURES_STEP in need
            ]
        except MediaError as error:
            key = keys[CLEAN_STEP if stage == "clean" else FEATURES_STEP]
            if error.reason == "too_large":  # whatever step met the limit
                stage, key = "clean", self.processor.refused_fingerprint(self.modality)
            rows.quarantine.append(self._refused(item, stage, key, error))
        rows.clean += results.clean
        rows.measurements += results.measurements
        rows.features += results.features

    def _clean_rows(
        self, item: dict[str, Any], children: list[tuple[str, Any]], keys: dict[str, str]
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Rows of the clean table, and of the measurements, as far as they are needed."""
        modality, parent = self.processor.modalities[self.modality], item["sha256"]
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

    def _children(self, item: dict[str, Any]) -> Iterator[tuple[str, Any]]:
        """Id and content of each part of an item; a whole one keeps the id of its bytes."""
        decoded = self.processor.decode(self.modality, item["data"])
        for cut, content in self.processor.modalities[self.modality].children(decoded):
            parent = item["sha256"]
            yield parent if cut == WHOLE else hashlib.sha256(f"{parent}\0{cut}".encode()).hexdigest(), content

    def _features(self, name: str, content: Any, key: str) -> dict[str, Any]:
        return {"id": name, "fingerprint": key, **self.processor.featurize(self.modality, content)}

    def _refused(self, item: dict[str, Any], stage: str, key: str | None, error: MediaError) -> dict[str, Any]:
        return {name: item[name] for name in _ORIGIN} | {
            "stage": stage,
            "outcome": "quarantined",
            "reason": error.reason,
            "message": one_line(f"{origin(item)}: {error}"),
            "modality": self.modality,
            "fingerprint": key,
        }


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
