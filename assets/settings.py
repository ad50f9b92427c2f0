"""Settings of the data side: where items come from, how they become samples, what runs the steps."""

import codecs
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from training.catalog import OUTPUTS
from training.schema import MODALITIES, SPLITS
from training.settings import (
    FORBID_EXTRA,
    FORMS,
    FeatureSettings,
    MediaLimits,
    ModelSettings,
    PromotionSettings,
    TrainingSettings,
    check,
    complete,
)


@dataclass(frozen=True, kw_only=True)
class SourceSettings:
    """One silo. Relative paths are relative to the project file.

    ``files`` alone: every file of a folder, glob, tar or zip is an item; its key is its path below the folder or in
    the archive, without suffix. ``files`` and ``table``: each row of the table (CSV, TSV, JSON Lines, Parquet) names a
    file in column ``key``, or in column ``file`` where the key is another; a file that no row names keeps its path
    as key. ``table`` and ``column``: text items; column ``key`` names them. ``files`` of modality text: one item a
    file. Hidden files (.name) are no items.

    A source with ``use: noise`` gives speech augmentation what it adds to recordings; no sample is made of it.
    """

    __pydantic_config__ = FORBID_EXTRA
    name: str
    modality: Literal["text", "image", "speech"]
    files: str | None = None
    table: str | None = None
    key: str | None = None  # column of the table that `align` joins on
    file: str | None = None  # column of the table that names the file; default: `key`
    column: str | None = None  # column of the table that holds the text
    time: str | None = None  # column of the table that says when the item was recorded: ISO 8601, or epoch s/ms/us/ns
    encoding: str = "utf-8"  # of tables and text files
    use: Literal["samples", "noise"] = "samples"
    optional: bool = False  # true: that there is nothing is no error
    strict: bool = False  # true: an item that cannot be read fails the run instead of going to quarantine

    def __post_init__(self) -> None:
        if self.files is None and self.table is None:
            raise ValueError(f"source {self.name!r} has neither files nor table: give one of them")
        if self.files is None and self.modality != "text":
            raise ValueError(f"source {self.name!r} is {self.modality} and has no files: say where its media lie")
        if self.files is None and (self.column is None or self.key is None):
            raise ValueError(f"source {self.name!r} reads text from a table: name its column and its key")
        if self.files is not None and self.table is not None and self.key is None:
            raise ValueError(f"source {self.name!r} has a table: name the key, the column that holds the file names")
        if self.files is not None and self.column is not None:
            raise ValueError(f"source {self.name!r} has files and a column of text: give one of them")
        for name in ("key", "file", "time"):
            if self.table is None and getattr(self, name) is not None:
                raise ValueError(f"source {self.name!r} has {name} but no table that could have such a column")
        if self.files is None and self.file is not None:
            raise ValueError(f"source {self.name!r} has a column of file names but no files: say where they lie")
        if self.use == "noise" and self.modality != "speech":
            raise ValueError(
                f"source {self.name!r} has use: noise and is {self.modality}: only speech gets noise added"
            )
        check_encoding(self.encoding)


def check_encoding(encoding: str) -> None:
    try:
        codecs.lookup(encoding)
    except LookupError:
        check(False, "encoding", encoding, "one that Python knows, such as utf-8, gbk or latin-1")


@dataclass(frozen=True, kw_only=True)
class SplitSettings:
    """Which split a sample goes to: what ``column`` says (train, validation or test), else by hash.

    A hash of seed and group (or, without groups, of the sample) falls into one of the shares; it stays put when data
    is added.
    """

    __pydantic_config__ = FORBID_EXTRA
    column: str | None = None
    train: float = 0.8
    validation: float = 0.1
    # `test` is the rest
    seed: int = 0

    def __post_init__(self) -> None:
        check(self.train > 0 and self.validation >= 0, "train", self.train, "shares that are not negative")
        check(self.train + self.validation <= 1, "train + validation", self.train + self.validation, "at most 1")

    @property
    def shares(self) -> dict[str, float]:
        return dict(zip(SPLITS, (self.train, self.validation, 1 - self.train - self.validation), strict=True))


@dataclass(frozen=True, kw_only=True)
class AlignSettings:
    """How items become samples: by equal keys, or by the explicit links of ``table``; and how samples are split.

    Columns (``label``, ``group``, ``held_out``, ``split.column``) are looked up in ``table``, then in the tables of
    the sources; ``source.column`` tells apart two sources that both have it. A value of a ``group`` column never
    stands on two sides of a split. A ``held_out`` column has test values, which occur in no other split, and others,
    which train and validation may share; ``test_values`` lists the test values, else a hash picks them. A sample whose
    columns ask for different splits is excluded. A sample without a value in a column is not bound by that column.
    """

    __pydantic_config__ = FORBID_EXTRA
    on: Literal["key"] = "key"
    table: str | None = None  # explicit links: one row a sample; an empty cell: the sample lacks that modality
    # source -> column of `table` that holds its keys; default: `key` where the source has the same table, else the
    # column called like the source, else like its modality
    columns: dict[str, str] = field(default_factory=dict)
    encoding: str = "utf-8"  # of `table`
    id: str | None = None  # column of `table` that names the sample; default: made from the keys
    label: str | None = None
    group: tuple[str, ...] = ()
    held_out: tuple[str, ...] = ()
    test_values: dict[str, tuple[str, ...]] = field(default_factory=dict)
    require: tuple[Literal["text", "image", "speech"], ...] = ()  # a sample lacking one of these is unmatched
    max_per_key: int = 64  # samples one key may give when several items share it
    max_missing: float = 0.95  # a modality that has a source and lacks in more than this share of samples is a fault
    split: SplitSettings = field(default_factory=SplitSettings)

    def __post_init__(self) -> None:
        check(self.max_per_key >= 1, "max_per_key", self.max_per_key, "at least 1")
        check_encoding(self.encoding)
        for column, values in self.test_values.items():
            check(column in self.held_out, "test_values", column, f"columns of held_out ({', '.join(self.held_out)})")
            check(len(values) > 0, f"test_values of {column}", values, "at least one value")
        if self.table is None:
            for name in ("columns", "id"):
                check(not getattr(self, name), name, getattr(self, name), "nothing unless there is a link `table`")


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """What runs the steps on batches: threads or processes of this machine."""

    __pydantic_config__ = FORBID_EXTRA
    kind: Literal["threads", "processes"] = "threads"
    workers: int | None = None  # default: the machine's cores
    batch_size: int = 64  # items a batch


# What deltalake takes for part of a URL, or refuses, in the path of a local table; Dagster and MLflow trip over ? too.
_NO_PATH = re.compile(r"[][#?|^\\]|%[0-9A-Fa-f]{2}")


@dataclass(frozen=True, kw_only=True)
class Project:
    """Everything one project file says. `orchestration.project.load` makes it; the assets read nothing else."""

    __pydantic_config__ = FORBID_EXTRA
    name: str
    sources: tuple[SourceSettings, ...]
    align: AlignSettings
    features: FeatureSettings = field(default_factory=FeatureSettings)
    limits: MediaLimits = field(default_factory=MediaLimits)
    model: ModelSettings = field(default_factory=ModelSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    promotion: PromotionSettings = field(default_factory=PromotionSettings)
    engine: EngineSettings = field(default_factory=EngineSettings)
    schedule: str | None = None  # cron, UTC
    watch: bool = False  # true: the sensor that starts a run when files change is on from the start
    data: str | None = None  # the folder that ${data} stands for in the paths of this file
    lake: str | None = None  # where the tables lie; default: a folder under TRIPTYCH_HOME
    tracking_uri: str | None = None  # MLflow's; default: MLFLOW_TRACKING_URI, else mlflow.db under TRIPTYCH_HOME
    path: Path = Path("project.yaml")  # the project file itself; set when it is read
    home: Path = Path(".triptych")  # TRIPTYCH_HOME; set when the file is read

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9_]{0,63}", self.name):
            raise ValueError(f"name is {self.name!r}, expected a letter, then letters, digits and _ (all lower case)")
        if not self.sources:
            raise ValueError("sources is empty: name at least one")
        names = [source.name for source in self.sources]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"sources named twice: {', '.join(repeated)}")
        for name, path in (("TRIPTYCH_HOME", str(self.home)), ("lake", self.lake_uri)):
            if "://" not in path and (bad := _NO_PATH.search(path)):
                raise ValueError(f"{name} is {path}: tables cannot lie under a path with {bad[0]!r}; choose another")
        if not self.modalities or (self.noise and "speech" not in self.modalities):
            raise ValueError(f"sources has noise ({', '.join(self.noise)}) and no speech that it could be added to")
        object.__setattr__(self, "model", complete(self.model, {m: FORMS[m] for m in self.modalities}))
        if self.promotion.metric is not None:
            names = [metric.name for metric in OUTPUTS.load(self.model.output.kind).metrics]
            expected = f"a metric of output {self.model.output.kind} ({', '.join(names)})"
            check(self.promotion.metric in names, "promotion.metric", self.promotion.metric, expected)
        if self.training.augmentation.speech is not None and not self.features.speech.keep_waveform:
            raise ValueError(
                "training.augmentation.speech needs the waveforms: set features.speech.keep_waveform: true"
            )

    @property
    def root(self) -> Path:
        """The folder that relative paths start from."""
        return self.path.parent

    @property
    def modalities(self) -> tuple[str, ...]:
        """Those that some source of samples gives."""
        given = {source.modality for source in self.sources if source.use == "samples"}
        return tuple(m for m in MODALITIES if m in given)

    @property
    def noise(self) -> tuple[str, ...]:
        """The sources that augmentation draws from."""
        return tuple(source.name for source in self.sources if source.use == "noise")

    @property
    def folder(self) -> Path:
        """This project's part of TRIPTYCH_HOME: lake, cache and checkpoints."""
        return self.home / "projects" / self.name

    @property
    def lake_uri(self) -> str:
        return self.lake or str(self.folder / "lake")

    @property
    def mlflow_uri(self) -> str:
        return self.tracking_uri or f"sqlite:///{self.home / 'mlflow.db'}"
