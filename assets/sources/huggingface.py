"""Data sets of Hugging Face `datasets`: a folder that it reads, one that `save_to_disk` wrote, or a name on its hub."""

import contextlib
import os
import pickle
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute as pc

from assets.formats.arrow import is_read, names_of, records
from assets.formats.base import Place, Record, TableFile
from assets.formats.media_column import MediaField, bytes_of_vectors, holds_binary
from assets.formats.values import as_text
from assets.keys import key_of
from assets.names import normalize
from assets.sources.base import Entry, Source, SourceError, signature_of
from assets.sources.table import text_entry
from assets.storage import Location, last_change, locate, opened
from assets.table_settings import TableSettings
from assets.time_settings import TimeSettings
from training.catalog import MODALITIES
from training.messages import one_line
from training.validation import Names, Strings

_ROWS = 1024  # of a batch; they are memory-mapped, and only what is asked for is read
_NETWORK_SECONDS = 5
_SAVED = ("dataset_dict.json", "state.json")  # what `save_to_disk` writes, of several splits and of one
_WHOLE = "all"  # what the rows of a data set without splits are called


class HuggingfaceSource(Source):
    """Every row is an item; the other columns are its attributes: of class labels their names; `split`, the split.

    Media are taken as they were put in, undecoded: bytes, or a file that lies in the data set; vectors are lists. What
    the library has downloaded or read of a folder it keeps in its own cache (HF_HOME) as Arrow, memory-mapped here.
    """

    @dataclass(frozen=True, kw_only=True)
    class Options(TimeSettings):
        dataset: str | None = None  # a folder, or a name on the hub: owner/name
        config: str | None = None  # which of several that a data set has
        revision: str | None = None  # branch, tag or commit on the hub
        splits: Names | None = None  # which are read; default: all
        column: str | None = None  # column that holds the media, or the text
        key: Names | None = None  # column that `align` joins on; several are one key. Default: split and row (train/0)
        missing: Strings = ()  # cells that mean: no value, such as NA

        @property
        def place(self) -> str:
            splits = ",".join(self.splits or ())
            return " ".join(filter(None, (self.dataset, self.config, self.revision and f"@{self.revision}", splits)))

    @classmethod
    def make(cls, root: Path, options: Options, modality: str, vectors: bool = False) -> Source:
        return cls(root, options, MODALITIES.load(modality).is_text and not vectors, vectors)

    def __init__(self, root: Path, options: Options, is_text: bool, vectors: bool = False) -> None:
        super().__init__(root, options)
        self.vectors = vectors
        assert options.dataset is not None and options.column is not None
        self._is_text, folder = is_text, root / options.dataset
        self._folder = folder.resolve() if folder.is_dir() else None  # None: on the hub
        self._place = str(self._folder or f"hf://datasets/{options.dataset}")
        self._made: bytes | None = None  # what another process had loaded

    def __str__(self) -> str:
        return self.options.place

    @classmethod
    def check(cls, modality: str, options: Options) -> None:
        if options.dataset is None or options.column is None:
            raise ValueError("needs a dataset, a folder or a name on Hugging Face's hub, and the column of its items")

    def exists(self) -> bool:
        return self._folder is not None or _is_name(self.options.dataset)

    def list(self) -> Iterator[Entry]:
        for split, data in self._splits.items():
            yield from self._rows(split, data)

    def open(self, entry: Entry) -> Iterator[bytes]:
        if entry.text is not None:
            yield entry.text.encode()
        elif entry.member is None:
            file = opened(entry.uri)
            try:
                yield from file.whole(entry.size)
            finally:
                file.close()
        else:
            yield self._bytes(entry)

    def signature(self) -> str:
        if self._folder is None:
            return signature_of([self._commit()])
        return signature_of((e.uri, e.size, e.reason or e.version) for e in locate(self._folder).files())

    def __getstate__(self) -> Any:
        """With the paths of the files that were made of the data set: workers of this machine need not load it again.
        Another machine finds none there, and loads it where it is asked for."""
        return {**self.__dict__, "_made": pickle.dumps(self._splits)} if "_splits" in self.__dict__ else self.__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.__dict__.pop("_splits", None)

    @cached_property
    def _splits(self) -> dict[str, Any]:
        """Split -> its rows, as a memory-mapped `datasets.Dataset` of Arrow. Raises SourceError."""
        import datasets

        datasets.disable_progress_bars()
        if self._made is not None:
            with contextlib.suppress(OSError):
                return dict(pickle.loads(self._made))
        found = self._local(datasets) if self._folder is not None else self._hub(datasets)
        if isinstance(found, datasets.Dataset):
            found = {str(found.split or _WHOLE): found}
        wanted = self.options.splits or tuple(found)
        if missing := [split for split in wanted if split not in found]:
            raise SourceError(f"{self._place}: no split {missing[0]!r}; it has {', '.join(found)}")
        return {split: found[split].with_format("arrow") for split in wanted}

    def _local(self, datasets: Any) -> Any:
        assert self._folder is not None
        try:
            if any((self._folder / name).is_file() for name in _SAVED):
                return datasets.load_from_disk(str(self._folder))
            return _prepared(datasets, str(self._folder), self.options.config)
        except Exception as error:  # each of its readers has its own
            raise SourceError(f"{self._place}: cannot be read as a data set: {_words(error)}") from None

    def _hub(self, datasets: Any) -> Any:
        name, options = self.options.dataset, self.options
        if not _is_name(name):
            raise SourceError(f"{self.root / name}: no such folder; correct `dataset` in the project file")
        try:
            commit = self._commit()
        except SourceError as unreachable:
            with contextlib.suppress(Exception), _offline():  # what was downloaded before
                return _prepared(datasets, name, options.config, options.revision)
            raise unreachable from None
        try:
            return _prepared(datasets, name, options.config, commit)
        except Exception as error:
            raise SourceError(f"{self._place}: cannot be loaded: {_words(error)}") from None

    def _commit(self) -> str:
        """What names the present state of a data set on the hub. Raises SourceError."""
        from huggingface_hub import HfApi

        name = self.options.dataset
        try:
            return HfApi().dataset_info(name, revision=self.options.revision, timeout=_NETWORK_SECONDS).sha or ""
        except Exception as error:  # the hub, the network's library and proxies each have their own
            raise SourceError(
                f"dataset is {name!r}: there is no such folder, and Hugging Face does not give it "
                f"({type(error).__name__}). Is it spelled right? Without a network: download it elsewhere "
                f"(`hf download {name} --repo-type dataset --local-dir FOLDER`), bring the folder, and name it"
            ) from None

    def _rows(self, split: str, data: Any) -> Iterator[Entry]:
        options, schema = self.options, data.data.schema
        required = tuple(dict.fromkeys([options.column, *(options.key or ()), *options.time_columns]))
        place, settings = cast(Location, Place(f"{self._place}/{split}")), TableSettings(missing=options.missing)
        table = TableFile(place, settings, required=required, text=options.column if self._is_text else None)
        names = [normalize(name) for name in schema.names]
        if missing := [n for n in required if n not in (schema.names if n == options.column else names)]:
            raise SourceError(f"{table}: no column {missing[0]!r}; it has {', '.join(names)}")
        media = None if self._is_text else MediaField.of(schema, options.column, self.vectors)
        is_binary = holds_binary(schema.field(options.column).type)
        if (is_binary and self._is_text) or (media is None) != self._is_text:
            kind, holds = data.features[options.column], "vectors" if self.vectors else "media"
            holds = "text" if self._is_text else holds
            raise SourceError(f"{table}: column {options.column!r} is {kind} and holds no {holds}; name another")
        fields = [field for field in schema if is_read(table, field)]
        table.check([field.name for field in fields])
        labels = {name: known for name, feature in data.features.items() if (known := _label_names(feature))}
        mtime, row = _last_change(data), 0
        for batch in (part for rows in data.iter(_ROWS) for part in rows.to_batches()):
            columns = {f.name: _named(batch[f.name], labels.get(f.name)) for f in fields}
            files: list[str | None] = [None] * len(batch)
            if media is not None:
                columns[media.column], files = _media(batch[media.column], media)
            for record, file in zip(records(table, columns, row), files, strict=True):
                yield self._item(record, split, file, mtime)
            row += len(batch)

    def _item(self, record: Record, split: str, file: str | None, mtime: int | None) -> Entry:
        """Args: `file`: where the medium lies, of a row that does not hold it."""
        options, name = self.options, record.values.get(self.options.column)
        key = key_of(record.values, options.key) if options.key else f"{split}/{record.line - 1}"
        values = record.values if split == _WHOLE else {"split": split, **record.values}
        record = replace(record, values=values)
        left_out = (options.column, *(options.key if len(options.key or ()) == 1 else ()))
        if self._is_text:
            return text_entry(record, key, options.column, options, mtime, left_out)
        member = posixpath.join(options.column, posixpath.basename(name or "")).rstrip("/")
        entry = Entry(key, record.table, member, record.line, record.line - 1, -1, mtime, listing=record.where)
        if file is not None:
            self._find(entry, file)
        entry.time, entry.until, problem = record.times(options)
        if problem is not None:
            entry.reason, entry.message = "malformed", f"{record.table}: {problem}"
        elif name is None and file is None:
            entry.reason, entry.message = "absent", f"{record.where}: column {options.column!r} holds nothing"
        entry.attributes = record.attributes(*left_out)
        return entry

    def _find(self, entry: Entry, file: str) -> None:
        """Makes a row that names a file stand for that file, which has to lie in the data set or the library's cache:
        a data set of others could name any file of this machine."""
        from datasets import config
        from huggingface_hub.constants import HF_HUB_CACHE

        path = Path(os.path.realpath((self._folder or Path("/")) / file))
        folders = [self._folder, config.HF_DATASETS_CACHE, config.DOWNLOADED_DATASETS_PATH, HF_HUB_CACHE]
        if not any(path.is_relative_to(os.path.realpath(folder)) for folder in folders if folder is not None):
            entry.refuse("outside_root", f"names {file!r}, which is not in the data set; it was not opened")
        elif not os.path.isfile(path):
            entry.refuse(
                "not_found", f"holds no bytes, and there is no file {file!r}; load and save the data set again"
            )
        else:
            found = locate(path).entry()
            entry.uri, entry.member, entry.offset = found.uri, None, None
            entry.size, entry.mtime, entry.version = found.size, found.mtime, found.version

    def _bytes(self, entry: Entry) -> bytes:
        split, column = entry.uri.rpartition("/")[2], self.options.column
        if split not in self._splits or entry.row is None or entry.row > len(self._splits[split]):
            raise ValueError("the data set has become shorter; run again")
        cell = self._splits[split][entry.row - 1 : entry.row][column][0]
        if self.vectors:
            content = bytes_of_vectors(cell)
        else:
            content = cell.as_py().get("bytes") if isinstance(cell, pa.StructScalar) else cell.as_py()
        if content is None:
            raise ValueError("there are no bytes in it any more; run again")
        return content


def _is_name(dataset: str) -> bool:
    """Whether it can be a name on the hub: owner/name, or the name alone of some old ones."""
    return dataset.count("/") < 2 and not dataset.startswith((".", "/", "~"))


def _prepared(datasets: Any, name: str, config: str | None, revision: str | None = None) -> Any:
    """`load_dataset`, which for the names of sound files wants TorchCodec, that only decoding needs."""

    class Named(datasets.Audio):
        def encode_example(self, value: Any) -> Any:
            return {"bytes": None, "path": value} if isinstance(value, str) else value

    builder = datasets.load_dataset_builder(name, config, revision=revision)
    if getattr(builder, "BASE_FEATURE", None) is datasets.Audio:
        builder.BASE_FEATURE = Named
    builder.download_and_prepare()
    builder.info.features = datasets.Features.from_dict(builder.info.features.to_dict())  # those that can be pickled
    return builder.as_dataset()


def _words(error: Exception) -> str:
    """What the library says; where it only says that it failed, why."""
    return one_line(str(error.__cause__ or error))


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """The libraries ask nobody, which without a network they do for half a minute."""
    import datasets
    import huggingface_hub

    places: tuple[Any, ...] = (datasets.config, huggingface_hub.constants)
    before = [place.HF_HUB_OFFLINE for place in places]
    try:
        for place in places:
            place.HF_HUB_OFFLINE = True
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = value


def _label_names(feature: Any) -> list[str] | None:
    """Of a class label, or of a list of them."""
    return getattr(getattr(feature, "feature", feature), "names", None)


def _named(column: pa.Array, names: list[str] | None) -> pa.Array:
    """Class labels as their names; -1, by which test sets have none, is no value."""
    if names is None:
        return column
    if not pa.types.is_integer(column.type):
        rows = [row and [names[n] for n in row if n is not None and 0 <= n < len(names)] for row in column.to_pylist()]
        return pa.array([as_text(row) for row in rows], pa.string())
    is_known = pc.and_(pc.greater_equal(column, 0), pc.less(column, len(names)))
    return pc.take(pa.array(names, pa.string()), pc.if_else(is_known, column, None))


def _media(column: pa.Array, media: MediaField) -> tuple[pa.Array, list[str | None]]:
    """What the media of a batch are called, null where there is none, and the files of those that are not held."""
    if not pa.types.is_struct(column.type):
        return names_of(column, None), [None] * len(column)
    content = column.field(media.content.removeprefix(f"{media.column}."))
    names = (
        column.field(media.name.removeprefix(f"{media.column}.")) if media.name else pa.nulls(len(column), pa.string())
    )
    is_file = pc.and_(column.is_valid(), pc.and_(content.is_null(), pc.is_valid(names)))
    is_held = pc.and_(column.is_valid(), content.is_valid())
    return pc.if_else(is_held, pc.fill_null(names, ""), None), pc.if_else(is_file, names, None).to_pylist()


def _last_change(data: Any) -> int | None:
    """Of the Arrow files that hold the rows; null where it is too fresh to rely on."""
    changes = [last_change(os.stat(file["filename"])) for file in data.cache_files]
    return None if not changes or None in changes else max(cast(list[int], changes))
