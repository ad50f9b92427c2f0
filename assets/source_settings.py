"""Settings of a source: what all kinds share, and the options of its own kind, read from one flat section."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from assets.catalog import SEGMENTS, SOURCES
from assets.storage import is_web
from training import catalog
from training.credentials import mask
from training.family import Choice
from training.schema import MODALITIES
from training.validation import FORBID_EXTRA, Names, validated

if TYPE_CHECKING:  # a source's module reads tables, and needs these settings
    from assets.segments.base import Segments
    from assets.sources.base import Source


@dataclass(frozen=True, kw_only=True)
class SourceSettings:
    """One silo: what all kinds of source have, and the options of its own kind (`assets.catalog.SOURCES`).

    In the project file, and for `SourceSettings.of`, the options stand beside the rest: ``{name: photos, modality:
    image, files: photos}``. Without `kind` it is `files` where there are `files`, else `table`. Relative paths are
    relative to the project file. A source with ``use: noise`` gives speech augmentation what it adds to recordings;
    no sample is made of it.
    """

    __pydantic_config__ = FORBID_EXTRA
    name: str
    modality: Literal[MODALITIES]  # type: ignore[valid-type]
    kind: str
    options: Any  # the kind's `Options`
    use: Literal["samples", "noise"] = "samples"
    optional: bool = False  # true: that there is nothing is no error
    segments: Choice | None = None  # how its items are cut (`assets.catalog.SEGMENTS`); null: each is one content
    # column of its table, or of its path -> the values that permit the use of a row; without one of them it is
    # quarantined, unread
    require: dict[str, Names] = field(default_factory=dict)
    strict: bool = False  # true: an item that cannot be read fails the run instead of going to quarantine

    vectors = False  # its items are vectors, as the features of its modality say: no setting of its own

    def __post_init__(self) -> None:
        kind = SOURCES.load(self.kind)
        try:
            kind.check(self.modality, self.options)
        except ValueError as error:
            raise ValueError(f"source {self.name!r} {error}") from None
        if self.segments is not None:
            can = [m for m in MODALITIES if catalog.MODALITIES.load(m).can_be_cut]
            if self.modality not in can:
                raise ValueError(
                    f"source {self.name!r} has segments and is {self.modality}: only {', '.join(can)} can be cut"
                )
            try:
                object.__setattr__(self, "segments", SEGMENTS.choose(self.segments))
                cut = SEGMENTS.load(self.segments.kind).modality
                SEGMENTS.make(self.segments)
            except ValueError as error:
                raise ValueError(f"source {self.name!r}: {error}") from None
            if cut not in (None, self.modality):
                raise ValueError(
                    f"source {self.name!r} has segments {self.segments.kind} and is {self.modality}: only {cut} can be "
                    "cut that way"
                )
        for place in (*(self.files or ()), self.table or ""):
            if is_web(place) and mask(place) != place:  # the URI that is kept must be one to read it by
                raise ValueError(
                    f"source {self.name!r} names {mask(place)}, and a login or signature is not for this file: a login "
                    "comes from ~/.netrc, signed URLs from a table (docs/layouts.md)"
                )
        self._check_token()
        if self.use == "noise" and not catalog.MODALITIES.load(self.modality).takes_noise:
            takers = [m for m in MODALITIES if catalog.MODALITIES.load(m).takes_noise]
            raise ValueError(
                f"source {self.name!r} has use: noise and is {self.modality}: only {', '.join(takers)} gets noise added"
            )

    def _check_token(self) -> None:
        """That a token goes to one server."""
        if getattr(self.options, "token_env", None) is None:
            return
        places = [urlsplit(place) for place in (*(self.files or ()), self.table or "") if is_web(place)]
        servers = {f"{place.scheme.lower()}://{place.netloc.lower()}" for place in places}
        if len(servers) != 1 or not all(place.netloc for place in places):
            raise ValueError(
                f"source {self.name!r} has a token_env, which is for one web server that `files` or `table` names, and "
                f"they name {', '.join(sorted(servers)) or 'none'}"
            )

    @classmethod
    def of(cls, **values: Any) -> "SourceSettings":
        """From the flat form of the project file. Raises ValueError."""
        return validated(cls, values)

    def make(self, root: Path) -> "Source":
        """The source itself; `root` is the folder that relative paths start from."""
        more = {"vectors": True} if self.vectors else {}
        source = SOURCES.load(self.kind).make(root, self.options, self.modality, **more)
        if (cutter := self.cutter()) is None:
            return source
        from assets.segments.base import CutSource

        return CutSource(source, cutter[1], cutter[0])

    def cutter(self) -> "tuple[str, Segments] | None":
        """What cuts its items, and what the manifest calls it; None: nothing does."""
        if self.segments is None:
            return None
        from assets.segments.base import cut_name

        segments = SEGMENTS.make(self.segments)
        return cut_name(self.segments, segments), segments

    def located(self, locate: Callable[[str], str]) -> "SourceSettings":
        """With `locate` applied to each option of its segments that names a model or file."""
        if self.segments is None:
            return self
        names = SEGMENTS.load(self.segments.kind).located
        options = {n: locate(v) if n in names and v else v for n, v in self.segments.options.items()}
        return replace(self, segments=Choice(self.segments.kind, options))

    def of_vectors(self) -> "SourceSettings":
        """As what reads vectors, whatever its modality."""
        if self.kind in ("table", "embedded"):
            options = SOURCES.load("vectors").Options(**vars(self.options))
            return replace(self, kind="vectors", options=options)
        of_vectors = replace(self)
        object.__setattr__(of_vectors, "vectors", self.kind != "vectors")
        return of_vectors

    @property
    def files(self) -> tuple[str, ...] | None:
        """Where the files lie, of a kind that has such an option; `table`, `keys` and `column` likewise."""
        return getattr(self.options, "files", None)

    @property
    def table(self) -> str | None:
        return getattr(self.options, "table", None)

    @property
    def keys(self) -> tuple[str, ...]:
        """The columns that are the key, together where there are several; none where parts have keys of their own."""
        if self.segments is not None and SEGMENTS.load(self.segments.kind).own_keys:
            return ()
        return getattr(self._rows, "key", None) or getattr(self.options, "key", None) or ()

    @property
    def column(self) -> str | None:
        return getattr(self.options, "column", None)

    @property
    def place(self) -> str | None:
        """What it reads, of a kind that says so; it has no password."""
        return getattr(self.options, "place", None)

    @property
    def rows(self) -> tuple[str, tuple[str, ...]]:
        """What its columns stand in, and by which key: sources that agree have the same row of it in a sample."""
        of = self._rows if getattr(self._rows, "table", None) else self.options
        table, which = getattr(of, "table", None) or self.place or self.name, getattr(of, "rows", None)
        return table if which is None else f"{table}, {which}", self.keys

    @property
    def _rows(self) -> Any:
        """Options of the segments, whose table may be that of the items' rows; None where there is none."""
        return None if self.segments is None else SEGMENTS.options(self.segments)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.no_info_wrap_validator_function(cls._read, handler(source))

    @classmethod
    def _read(cls, values: Any, checked: Callable[[Any], Any]) -> Any:
        """Takes the kind's options out of the flat form, so that an error in them has the key path of the file."""
        from pydantic import TypeAdapter

        if not isinstance(values, Mapping):
            return checked(values)
        kind = values["kind"] if "kind" in values else _kind_of(values)
        if not isinstance(kind, str):
            raise ValueError(f"kind is {kind!r}, expected the name of a kind of source")
        options = SOURCES.load(kind).Options
        shared = {field.name for field in fields(cls)} - {"options"}
        known = [*shared, *(field.name for field in fields(options))]
        for name in values.keys() - set(known):
            raise _unknown(str(name), known, values[name])
        read = TypeAdapter(options).validate_python({n: value for n, value in values.items() if n not in shared})
        return checked({n: value for n, value in values.items() if n in shared} | {"kind": kind, "options": read})


def _kind_of(values: Mapping[str, Any]) -> str:
    """What a source is that does not say its kind."""
    name, has = values.get("name"), {key for key, value in values.items() if value is not None}
    if has >= {"files", "column"}:
        raise ValueError(f"source {name!r} has files and a column of texts or media: give one of them")
    if "file" in has and "files" not in has:
        raise ValueError(f"source {name!r} has a column of file names but no files: say where they lie")
    if "files" in has:
        return "files"
    is_media = values.get("modality") in MODALITIES and not catalog.MODALITIES.load(values["modality"]).is_text
    return "embedded" if is_media and "table" in has else "table"


def _unknown(name: str, known: Sequence[str], value: Any) -> Exception:
    """That a key is not known, at its own place in the project file."""
    from pydantic import ValidationError
    from pydantic_core import PydanticCustomError

    close = difflib.get_close_matches(name, known, 1)
    meant = f"did you mean {close[0]}?" if close else f"known are {', '.join(sorted(known))}"
    error = PydanticCustomError("value_error", "{error}", {"error": f"{name!r} is no key of such a source; {meant}"})
    return ValidationError.from_exception_data("source", [{"type": error, "loc": (name,), "input": value}])
