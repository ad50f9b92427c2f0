"""Raw text, images and speech to the tensors of a training row: one class for featurizing, training and serving.

    bytes -> decode and clean (`training.modalities`) -> featurize (`training.featurizers`) -> tensors

Importing this needs no torch: the data side computes fingerprints without it.
"""

import dataclasses
import functools
import json
from collections.abc import Collection, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from training.compressed import packed, unpacked
from training.compressions.base import Fit
from training.family import is_own
from training.features import FeatureSettings
from training.media import MediaError
from training.schema import MODALITIES, fingerprint
from training.settings import DECODING, MediaLimits
from training.validation import to_dict

Row = dict[str, Any]


def contents(row: Row, modality: str) -> list[dict[str, Any]]:
    """The columns of each content that a row has of a modality, in order."""
    return [] if row[modality] is None else [row[modality], *row.get(f"{modality}_more", ())]


_FILE = "processor.json"


class Processor:
    """The steps of one project: how each modality is decoded, cleaned and featurized, and what names these steps."""

    def __init__(self, features: FeatureSettings, limits: MediaLimits, fits: Mapping[str, Fit] | None = None) -> None:
        """Args: `fits`: modality -> what the compression of its features has found (`training.compressions`)."""
        self.features = features
        self.limits = limits
        self.compressed = {name: features.compressed(name, (fits or {}).get(name)) for name in MODALITIES}
        self.modalities = {name: features.modality(name) for name in MODALITIES}
        self.featurizers = {name: features.featurizer(name) for name in MODALITIES}

    def row(self, **inputs: str | bytes | None) -> Row:
        """What training and serving consume: sample_id and label (None), and for each modality None or its columns
        (tensors, and of a text the text). Raises MediaError.

        Args:
            inputs: modality -> text, or the bytes of a file.
        """
        row: Row = dict.fromkeys(("sample_id", "label", *MODALITIES))
        for name, value in inputs.items():
            if value is not None:
                data = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
                row[name] = self.columns(name, self.decode(name, data))
        return row

    def columns(self, modality: str, content: Any) -> dict[str, Any]:
        """Tensors and other columns that a model reads of a content. Raises MediaError."""
        columns, compressed = self.featurize(modality, content), self.compressed[modality]
        if compressed is not None and compressed.is_ready:  # as it is read of a table; else no model reads it
            (stored,) = compressed.compress([columns[compressed.name]])
            columns |= compressed.restore(stored)
        return columns

    def decode(self, modality: str, data: bytes, *, to_cut: bool = False) -> Any:
        """The content of an item; text is UTF-8. Raises MediaError. Args: `to_cut`, see `decoded_size`."""
        return self.modalities[modality].decode(data, self.limits, self.decoded_size(modality, to_cut=to_cut))

    def decoded_size(self, modality: str, *, to_cut: bool) -> int | None:
        """What is needed of an item at most (`Modality.decode`); all of it where parts will be cut out of it."""
        return None if to_cut else self.featurizers[modality].decoded_size

    def featurize(self, modality: str, content: Any) -> dict[str, Any]:
        """Tensors and other columns of a content's feature row. Raises MediaError."""
        (columns,) = self.featurize_all(modality, [content])
        if isinstance(columns, MediaError):
            raise columns
        return columns

    def featurize_all(
        self, modality: str, contents: Sequence[Any], tensors: Collection[str] | None = None
    ) -> list[dict[str, Any] | MediaError]:
        """`featurize` of each; a MediaError in the place of what would raise it. Args: `tensors` that are enough."""
        extras, featurizer = self.modalities[modality].extras, self.featurizers[modality]
        if tensors is not None and self.features.unaffected(modality) and {*tensors} < {*featurizer.tensors}:
            results = featurizer.make(tensors, contents)
        else:
            results = featurizer.featurize_all(contents)
        return [
            result if isinstance(result, MediaError) else extras(content) | result
            for content, result in zip(contents, results, strict=True)
        ]

    def prepare(self, modality: str) -> None:
        """Loads what its features need, once, before any is made. Raises ValueError where it is not there, or their
        compression does not fit them."""
        try:
            self.featurizers[modality].prepare()
            if (compressed := self.compressed[modality]) is not None:
                compressed.check(self.featurizers[modality].shape().width)
        except ValueError as error:
            raise ValueError(f"features.{modality}: {error}") from error

    def clean_fingerprint(self, modality: str) -> str:
        """Names the clean step: its version, its settings, and the packages that decide its rows. Limits are no part:
        what was within them stays as it is when they change."""
        return fingerprint("clean", modality, *self.clean_parts(modality).values())

    def clean_parts(self, modality: str) -> dict[str, Any]:
        """What that name is made of."""
        cleaner = self.modalities[modality]
        return {
            "version": cleaner.version,
            "settings": {} if cleaner.options is None else to_dict(cleaner.options),
            "files": cleaner.identity(),
            "packages": package_versions(cleaner.packages),
        }

    def refused_fingerprint(self, modality: str, limit: str | None = None) -> str:
        """Names the clean step with a limit (None: all of them): under it stands what that refused, so that another
        one tries it again."""
        return fingerprint("limits", *self.refused_parts(modality, limit).values())

    def refused_parts(self, modality: str, limit: str | None = None) -> dict[str, Any]:
        names = (limit,) if limit else self.limits_of(modality)
        return {
            "clean": self.clean_fingerprint(modality),
            "limits": {name: getattr(self.limits, name) for name in names},
        }

    def limits_of(self, modality: str) -> tuple[str, ...]:
        """The fields of MediaLimits that bound its items."""
        kind = self.modalities[modality]
        return "max_bytes", *(() if kind.as_string else DECODING), *kind.limits

    def fingerprint(self, modality: str, tensor: str | None = None) -> str:
        """Names the feature rows that hold a tensor (default: the one that a model reads); covers the clean step, which
        decodes for them, and how they are compressed."""
        return fingerprint("featurize", *self.parts(modality, tensor).values())

    def parts(self, modality: str, tensor: str | None = None) -> dict[str, Any]:
        """What that name is made of."""
        compressed, row = self.compressed[modality], self._row(modality, tensor)
        of = {"compression": compressed.identity()} if compressed is not None and compressed.name in row else {}
        return self._featurizer_parts(modality, tensor) | of

    def refusing_fingerprint(self, modality: str) -> str:
        """Names the featurize step without the compression: under it stands what that step refused, for all rows."""
        return fingerprint("featurize", *self.refusing_parts(modality).values())

    def refusing_parts(self, modality: str) -> dict[str, Any]:
        """What that name is made of: of the first row, whichever a model reads."""
        return self._featurizer_parts(modality, self.features.rows(modality)[0][0])

    def _featurizer_parts(self, modality: str, tensor: str | None) -> dict[str, Any]:
        """The rows beside the first one say which tensors they hold."""
        featurizer, row = self.featurizers[modality], self._row(modality, tensor)
        settings = {} if featurizer.options is None else to_dict(featurizer.options)
        if unaffected := self.features.unaffected(modality).get(row[0], ()):
            default = {field.name: field.default for field in dataclasses.fields(featurizer.options)}
            settings |= {name: default[name] for name in unaffected}
        for name in (*featurizer.at_batch, *featurizer.located):
            settings.pop(name)
        kind = self.features.identity(modality)
        if not is_own(self.features.choice(modality).kind):  # a user's own may inherit the recipe, and not follow it
            kind = featurizer.recipe or kind
        return {
            "clean": self.clean_fingerprint(modality),
            "kind": kind,
            "version": featurizer.version,
            "settings": settings,
            "files": featurizer.identity(),
            "packages": package_versions(featurizer.packages),
        } | ({} if row == self.features.rows(modality)[0] else {"tensors": list(row)})

    def _row(self, modality: str, tensor: str | None) -> tuple[str, ...]:
        """The tensors that stand in a row with one (default: the one that a model reads)."""
        wanted = tensor or self.featurizers[modality].read
        return next(row for row in self.features.rows(modality) if wanted in row)

    def save_pretrained(self, folder: Path | str) -> None:
        """Writes processor.json, and the files that featurizers need beside it, so that the model can move."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        content = {"features": self.features.served().plain(), "limits": to_dict(self.limits)}
        (folder / _FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        for name, compressed in self.compressed.items():
            if compressed is not None and compressed.compression.fit is not None:
                _fit_file(folder, name).write_bytes(packed(compressed.compression.fit))
        for name, featurizer in self.featurizers.items():
            (files := _folder(folder, name)).mkdir(exist_ok=True)
            featurizer.save(files)
            if not any(files.iterdir()):
                files.rmdir()

    @classmethod
    def from_pretrained(cls, folder: Path | str) -> "Processor":
        path = Path(folder) / _FILE
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            kept = {name: _fit_file(Path(folder), name) for name in MODALITIES}
            fits = {name: unpacked(file.read_bytes()) for name, file in kept.items() if file.is_file()}
            processor = cls(FeatureSettings.from_plain(content["features"]), MediaLimits(**content["limits"]), fits)
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is not a saved processor: {error}; expected the folder of a model") from error
        for name, featurizer in processor.featurizers.items():
            if (files := _folder(Path(folder), name)).is_dir():
                featurizer.restore(files)
        return processor


def _folder(model: Path, modality: str) -> Path:
    return model / f"{modality}_features"


def _fit_file(model: Path, modality: str) -> Path:
    return model / f"{modality}_fit.safetensors"


def package_versions(packages: tuple[str, ...]) -> dict[str, str]:
    return {name: _version(name) for name in packages}


@functools.cache
def _version(package: str) -> str:
    return metadata.version(package).partition("+")[0]  # the build (+cpu, +cu130) is no matter
