"""Settings of the data side: where items come from, how they become samples, what runs the steps."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from assets.catalog import ENGINES, JOINS, LAUNCHERS
from assets.evaluation_settings import CardSettings, EvaluationSettings
from assets.lake import MEMORY_LIMIT
from assets.names import normalize
from assets.operation_settings import AlertSettings, FreshnessSettings, RetrySettings
from assets.pairing import PairingSettings
from assets.partitions import PartitionSettings
from assets.source_settings import SourceSettings
from assets.table_settings import TableSettings
from assets.view_settings import SOURCE, Views, read_places
from training import catalog
from training.catalog import DEFAULT_SIGNATURES, FILTERS, OBJECTIVES, OUTPUTS, SIGNATURES, VARIANTS
from training.codecs.options import Source as CodecSource
from training.family import Choice, Family, own_module
from training.features import FeatureSettings
from training.federation.settings import FederationSettings, check_federation
from training.filters.base import Filter
from training.metrics import Metric
from training.mixing import check_mixing
from training.objectives.options import FUSED, check_objectives, column_of
from training.outputs.base import Output
from training.personalization_settings import PersonalizationSettings, check_personalization
from training.preference_settings import PreferenceSettings, check_preference
from training.pretraining_settings import PretrainingSettings, check_pretraining
from training.prompt import read_prompt
from training.schema import MODALITIES, SPLITS
from training.settings import (
    GenerationSettings,
    MediaLimits,
    ModelSettings,
    PromotionSettings,
    TextCleaning,
    TrainingSettings,
    choose,
    complete,
)
from training.signatures.base import Signature
from training.tuning_settings import TuningSettings, with_values
from training.validation import FORBID_EXTRA, Names, OneOrMore, Strings, check, to_dict
from training.variants.base import choose_variants
from training.vectors import VectorModality
from training.views import most

if TYPE_CHECKING:  # a source's module needs these settings
    from assets.segments.base import Segments
    from assets.sources.base import Source


@dataclass(frozen=True, kw_only=True)
class SplitSettings:
    """Which split a sample goes to: what ``column`` says (train, validation or test), else by hash.

    A hash of seed and group (or, without groups, of the sample) falls into one of the shares. It stays put when data
    is added. Near duplicates, and parts of one item, are hashed as one, unless some of them were samples before: then
    all fall where those were.
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
class AlignSettings(TableSettings):  # of `table`
    """How items become samples: by equal keys, or by the explicit links of ``table``; and how samples are split.

    Columns (``label``, ``group``, ``held_out``, ``split.column``) are looked up in ``table``, then in the tables of
    the sources; ``source.column`` tells apart two sources that both have it, and ``image_id`` (``text_id``, ...) is the
    content itself, so that equal pictures are one group. A value of a ``group`` column never stands on two sides of a
    split. A ``held_out`` column has test values, which occur in no other split, and others, which train and validation
    may share; ``test_values`` lists the test values, else a hash picks them. A sample whose columns ask for different
    splits is excluded. A sample without a value in a column is not bound by that column.
    """

    __pydantic_config__ = FORBID_EXTRA
    on: Choice = field(default_factory=lambda: Choice("key"))  # which join (`assets.catalog.JOINS`)
    table: str | None = None  # explicit links: one row a sample; an empty cell: the sample lacks that modality
    # source -> column of `table` that holds its keys, or several (`assets.keys`); default: `key` where the source has
    # the same table, else the column called like the source, else like its modality. A list: the columns of a `table`
    # without header
    columns: dict[str, Names] | tuple[str, ...] = field(default_factory=dict)
    id: str | None = None  # column of `table` that names the sample; default: made from the keys
    label: str | tuple[str, ...] | None = None  # several: those that model.outputs names
    group: Strings = ()
    held_out: Strings = ()
    test_values: dict[str, Strings] = field(default_factory=dict)
    require: Strings = ()  # a sample lacking one of these is unmatched
    max_per_key: int = 64  # samples one key may give when several items share it; all parts of an item count as one
    # modality -> how many of its items a sample may have, all in one sample: of one key by source, time and place, of
    # a link table as a cell lists them (`a.jpg;b.jpg`, or a list), of a join in time those that match; or the views of
    # which it may have one each (`assets.view_settings`). Of other modalities several of a key are several samples
    several: dict[str, Any] = field(default_factory=dict)
    # modalities whose contents may stand in several splits; of others that is a leak, but for texts beside media
    allow_shared: Strings = ()
    max_missing: float = 0.95  # a modality that has a source and lacks in more than this share of samples is a fault
    split: SplitSettings = field(default_factory=SplitSettings)
    pairing: PairingSettings | None = None  # null: a training row has the same contents in each epoch

    def __post_init__(self) -> None:
        for name in ("require", "allow_shared"):
            for modality in getattr(self, name):
                check(modality in MODALITIES, name, modality, f"modalities ({', '.join(MODALITIES)})")
        for modality in self.several:
            check(modality in MODALITIES, "several", modality, f"modalities ({', '.join(MODALITIES)})")
        places = {m: read_places(f"several.{m}", value) for m, value in self.several.items()}
        object.__setattr__(self, "several", places)
        choose(self, "on", JOINS)
        check(self.max_per_key >= 1, "max_per_key", self.max_per_key, "at least 1")
        super().__post_init__()
        for column, values in self.test_values.items():
            check(column in self.held_out, "test_values", column, f"columns of held_out ({', '.join(self.held_out)})")
            check(len(values) > 0, f"test_values of {column}", values, "at least one value")
        named = {column: tuple(map(normalize, values)) for column, values in self.test_values.items()}
        object.__setattr__(self, "test_values", named)  # as the tables' cells are
        if self.table is None:
            for name in ("columns", "id", "delimiter", "quote", "rows", "missing"):
                check(not getattr(self, name), name, getattr(self, name), "nothing unless there is a link `table`")

    @property
    def labels(self) -> tuple[str, ...]:
        """The columns with what shall be answered."""
        return (self.label,) if isinstance(self.label, str) else self.label or ()

    @property
    def views(self) -> dict[str, Views]:
        """Modality -> its views, of those that have some."""
        return {m: places for m, places in self.several.items() if isinstance(places, Views)}

    @property
    def places(self) -> dict[str, int | tuple[str, ...]]:
        """`several` as models have it (`training.views`)."""
        return {m: places.views if isinstance(places, Views) else places for m, places in self.several.items()}

    @property
    def header(self) -> tuple[str, ...]:
        """The columns of a link table that has no header of its own."""
        return () if isinstance(self.columns, dict) else self.columns

    @property
    def key_columns(self) -> dict[str, tuple[str, ...]]:
        """Source -> columns of the link table that are its key, as far as `columns` says."""
        return self.columns if isinstance(self.columns, dict) else {}


@dataclass(frozen=True, kw_only=True)
class AnswerSettings:
    """Whether answers are logged, into the table `answers`. Off by default: what people ask is theirs, and even the
    hash of a short text tells it to who tries all that it could be."""

    __pydantic_config__ = FORBID_EXTRA
    log: bool = False  # each under an id, with model version, dataset and the SHA-256 of what was asked
    texts: bool = False  # also the texts and columns that were asked, as they are
    inputs: bool = False  # also all that was asked, pictures and recordings too: what feedback is then learned from

    def __post_init__(self) -> None:
        for name in ("texts", "inputs"):
            check(self.log or not getattr(self, name), name, getattr(self, name), "false, unless `log` is true")


def _filters(sections: dict[str, Any], modalities: Collection[str]) -> dict[str, tuple[Choice, ...]]:
    """Checked; the project file may say one filter without a list."""
    filters = {}
    for modality, section in sections.items():
        pairs = [pair for pair in FILTERS.kinds if "+" in pair and set(pair.split("+")) <= set(modalities)]
        expected = f"modalities of the sources, or two of them ({', '.join((*modalities, *pairs))})"
        check(modality in (*modalities, *pairs), "filters", modality, expected)
        listed = section if isinstance(section, list | tuple) else [section]
        try:
            choices = tuple(FILTERS.choose(item, modality) for item in listed)
            for choice in choices:  # made, so that what is wrong with one shows now
                rule = FILTERS.make(choice, scope=modality)
                expected = "`value`, or `measure` and a `version` of 1 or more"
                check(rule.value is not None or rule.version > 0, f"filter {choice.kind}", "without either", expected)
        except ValueError as error:
            raise ValueError(f"filters.{modality}: {error}") from None
        kinds = [choice.kind for choice in choices]
        check(len(set(kinds)) == len(kinds), f"filters.{modality}", kinds, "each kind once")
        expected = "similarity alone: it judges samples, not items"
        check(modality in modalities or kinds == ["similarity"], f"filters.{modality}", kinds, expected)
        filters[modality] = choices
    return filters


OFF = "off"


def _duplicates(sections: dict[str, Any], modalities: Collection[str]) -> dict[str, Choice | str]:
    """Modality -> what signs it, checked, or OFF."""
    for modality in sections:
        check(modality in modalities, "duplicates", modality, f"modalities of the sources ({', '.join(modalities)})")
    chosen: dict[str, Choice | str] = {}
    for modality in modalities:
        kind = sections.get(modality, DEFAULT_SIGNATURES.get(modality, OFF))
        if kind == OFF:
            chosen[modality] = OFF
            continue
        if isinstance(kind, dict) and "kind" not in kind and modality in DEFAULT_SIGNATURES:
            kind = {"kind": DEFAULT_SIGNATURES[modality], **kind}
        try:
            chosen[modality] = choice = SIGNATURES.choose(kind, modality)
            SIGNATURES.make(choice, scope=modality)
        except ValueError as error:
            raise ValueError(f"duplicates.{modality}: {error} ({OFF}: none are sought)") from None
    return chosen


_SECRET = re.compile("secret|password|token|key", re.IGNORECASE)  # in names of storage options


_SIZE = re.compile(r"[1-9]\d*(\.\d+)? ?[KMGT]i?B")  # what DuckDB takes for one
_OWNER = re.compile(r"team:.+|[\w.+-]+@[\w-]+(\.[\w-]+)+")  # what Dagster takes for one


def _choose(family: Family, value: object) -> Choice:
    """What the file says of a family, checked; a user's own kind is imported, so that its absence shows now."""
    choice = family.choose(value)
    if choice.kind not in family.names():
        family.load(choice.kind)
    return choice


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
    # Modality -> filters (`training.catalog.FILTERS`, a tuple of Choice) that decide what of it samples may have; two,
    # such as text+image -> filters that decide which samples with both there may be.
    filters: dict[str, Any] = field(default_factory=dict)
    # Modality -> what near duplicates are told by (`training.catalog.SIGNATURES`, a Choice), or OFF.
    duplicates: dict[str, Any] = field(default_factory=dict)
    model: ModelSettings = field(default_factory=ModelSettings)
    pretraining: PretrainingSettings | None = None  # of the encoders, without labels; null: they start anew
    training: TrainingSettings = field(default_factory=TrainingSettings)
    promotion: PromotionSettings = field(default_factory=PromotionSettings)
    personalization: PersonalizationSettings | None = None  # groups have adapters of their own; null: none has
    preference: PreferenceSettings | None = None  # the champion learns from feedback; null: it does not
    federation: FederationSettings | None = None  # how silos train one model; null: they do not
    tuning: TuningSettings | None = None  # a search for better settings of model and training; null: none
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    card: CardSettings = field(default_factory=CardSettings)
    # Smaller or faster forms of the champion (`training.catalog.VARIANTS`), each judged and registered; none: ().
    variants: Annotated[tuple[Choice, ...], OneOrMore()] = ()
    engine: Choice = field(default_factory=lambda: Choice("local"))  # what runs the steps on batches
    launcher: Choice = field(default_factory=lambda: Choice("subprocess"))  # what starts the trainer
    owners: Strings = ("team:triptych",)  # of the assets: addresses, or teams (team:NAME)
    partitions: PartitionSettings | None = None  # of clean and feature tables, by event time; null: none
    schedule: str | None = None  # cron, UTC
    watch: bool = False  # true: the sensor that starts a run when files change is on from the start
    # Asset, or `all` -> eager: whenever what it is made of is made anew; missing: once, as soon as it can be; or cron,
    # UTC: then, as soon as what it is made of was made since
    automation: dict[str, str] = field(default_factory=dict)
    freshness: FreshnessSettings | None = None
    retries: RetrySettings = field(default_factory=RetrySettings)
    alerts: AlertSettings | None = None
    data: str | None = None  # the folder that ${data} stands for in the paths of this file
    memory: str = MEMORY_LIMIT  # that a step's queries may take; what is more is spilled to disk, under TRIPTYCH_HOME
    lake: str | None = None  # where the tables lie; default: a folder under TRIPTYCH_HOME
    # of a lake on an object store, as deltalake names them: aws_endpoint, aws_region, ...; credentials never
    storage_options: dict[str, str] = field(default_factory=dict)
    tracking_uri: str | None = None  # MLflow's; default: MLFLOW_TRACKING_URI, else mlflow.db under TRIPTYCH_HOME
    # Where MLflow keeps models and files of this project's runs, from the first run on: a folder, or s3://BUCKET/PREFIX.
    artifacts: str | None = None  # default: a folder under TRIPTYCH_HOME, or what MLflow's server says
    answers: AnswerSettings = field(default_factory=AnswerSettings)  # what is kept of them
    # How many of the newest datasets `gc` leaves as they were, beside the present one and those of registered models.
    keep_snapshots: int = 0
    path: Path = Path("project.yaml")  # the project file itself; set when it is read
    home: Path = Path(".triptych")  # TRIPTYCH_HOME; set when the file is read

    def __post_init__(self) -> None:
        engine: Any = self.engine
        if isinstance(engine, Mapping) and "kind" not in engine:
            engine = {"kind": "local", **engine}
        object.__setattr__(self, "engine", _choose(ENGINES, engine))
        object.__setattr__(self, "launcher", _choose(LAUNCHERS, self.launcher))
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
        check(self.keep_snapshots >= 0, "keep_snapshots", self.keep_snapshots, "0 or more")
        size = "a size such as 500MB or 2GB"
        check(_SIZE.fullmatch(self.memory) is not None, "memory", self.memory, size)
        for owner in self.owners:
            check(_OWNER.fullmatch(owner) is not None, "owners", owner, "an address, or team:NAME")
        for option in self.storage_options:
            if _SECRET.search(option):
                raise ValueError(
                    f"storage_options has {option}: credentials come from the environment ({option.upper()}), since "
                    "this file is shared and what it says is logged"
                )
        for source in self.sources:
            if source.use == "noise" and source.modality not in self.modalities:
                raise ValueError(
                    f"sources has noise ({source.name}) and no {source.modality} that it could be added to"
                )
        for name in self.align.pairing.by if self.align.pairing else ():
            expected = f"sources of samples ({', '.join(self.of_samples)})"
            check(name in self.of_samples, "align.pairing.by", name, expected)
            modality = next(source.modality for source in self.sources if source.name == name)
            single = f"sources of which a sample has one item (align.several names {modality})"
            check(modality not in self.align.several, "align.pairing.by", name, single)
        for modality in self.align.several:
            expected = f"modalities that there are sources of ({', '.join(self.modalities)})"
            check(modality in self.modalities, "align.several", modality, expected)
        of_samples = [source for source in self.sources if source.use == "samples"]
        for modality, views in self.align.views.items():
            if views.by == SOURCE and self.align.table is None:
                named = [source.name for source in of_samples if source.modality == modality]
                views.check_sources(f"align.several.{modality}", named)
        JOINS.make(self.align.on).check(self.align, of_samples)
        if self.partitions is not None:
            self._check_times()
        if self.alerts is not None and not self.answers.log:
            on = self.alerts.on
            check("drift" not in on, "alerts.on", on, "others than drift, unless answers.log is true")
        self._check_personal_data()
        object.__setattr__(self, "filters", _filters(self.filters, self.modalities))
        object.__setattr__(self, "duplicates", self._signed())
        object.__setattr__(self, "features", self.features.with_encoders(self.model.encoders))
        object.__setattr__(self, "sources", tuple(self._fitting(source) for source in self.sources))
        object.__setattr__(self, "federation", self._federated())
        read = self.modalities if self.federation is None else self.federation.modalities
        object.__setattr__(self, "model", complete(self.model, {m: self.features.forms[m] for m in read}))
        for choice in (*self.model.encoders.values(), self.model.fusion, *self.training.objectives):
            own_module(choice.kind)  # an own one has to lie somewhere; its import, which may need torch, can wait
        kind = OUTPUTS.load(self.model.output.kind)
        is_output = isinstance(kind, type) and issubclass(kind, Output)
        check(is_output, "model.output", self.model.output.kind, "a subclass of training.outputs.base.Output")
        output = self.make_output()
        self._check_output(output)
        self._check_prompt(output)
        self._check_training(output)
        if self.federation is not None:
            launcher, features, align = self.launcher.kind, self.features, self.align
            check_federation(self.federation, self.model, self.training, features, output, launcher, align.pairing)
        if self.pretraining is not None:
            read = output.inputs(self.modalities)
            encoders = {m: choice for m, choice in self.model.encoders.items() if m in read}
            check_pretraining(self.pretraining, replace(self.model, encoders=encoders), self.features.forms)
        if self.preference is not None:
            check_preference(output, self.model.output.kind)
            expected = "`answers: {log: true}` beside it: feedback is about answers that were logged"
            check(self.answers.log, "preference", to_dict(self.preference), expected)
            viewed = ", ".join(self.align.views)
            expected = "no views (align.several), whose names are not logged with answers"
            check(not viewed, "preference", f"beside views of {viewed}", expected)
        if self.tuning is not None:
            self._check_tuning(self.tuning, output)
        object.__setattr__(self, "variants", choose_variants(self.variants))
        for choice in self.variants:
            why = VARIANTS.make(choice).refusal(self.model, output, self.align.several)
            check(why is None, "variants", str(choice), f"others: {why}")
        if self.personalization is not None:
            labels = self.align.labels
            check_personalization(self.personalization, output, self.model.output.kind, labels, self.variants)

    def _federated(self) -> FederationSettings | None:
        """With the modalities that the model reads, in their order."""
        if self.federation is None:
            return None
        read = [m for m in MODALITIES if m in (self.federation.modalities or self.modalities)]
        left = [m for m in self.modalities if m not in read]
        expected = f"with {', '.join(left)}, which sources here give"
        check(not left, "federation.modalities", list(self.federation.modalities), expected)
        lacks = [m for m in read if m not in self.modalities] if self.federation.listen is not None else []
        expected = f"those of the coordinator's own sources ({', '.join(self.modalities)}), by which it is evaluated"
        check(not lacks, "federation.modalities", list(self.federation.modalities), expected)
        return replace(self.federation, modalities=tuple(read))

    def _check_times(self) -> None:
        """Partitions need days: some source says them, and not times since a recording began."""
        timed = [source for source in self.sources if getattr(source.options, "time", source) is not None]
        check(len(timed) > 0, "partitions", to_dict(self.partitions), "none, unless a source says a column `time`")
        relative = getattr(JOINS.options(self.align.on), "relative", False)
        check(not relative, "partitions", to_dict(self.partitions), "none beside align.on.relative: times have no day")

    def _check_personal_data(self) -> None:
        """Nothing keeps as it is what cleaning masks or refuses."""
        said = "keep" if self.cleaning is None else self.cleaning.personal_data
        beside = f"beside features.text.personal_data: {said}"
        expected = f"false {beside}: what is asked would be kept as it is"
        for name in ("texts", "inputs"):
            kept = getattr(self.answers, name)
            check(said == "keep" or not kept, f"answers.{name}", kept, expected)
        for source in self.sources:
            unit = None if source.segments is None else source.segments.options.get("unit")
            expected = f"sentences {beside}: single words do not tell what they are part of"
            check(said == "keep" or unit != "words", f"source {source.name!r}: segments.unit", unit, expected)

    def _signed(self) -> dict[str, Choice | str]:
        """What signs which modality: nothing those whose features read vectors."""
        vectors = [m for m in self.modalities if isinstance(self.features.modality(m), VectorModality)]
        for modality in vectors:
            said = self.duplicates.get(modality, OFF)
            check(said == OFF, f"duplicates.{modality}", said, f"{OFF}: features.{modality} reads vectors")
        return _duplicates({**self.duplicates, **dict.fromkeys(vectors, OFF)}, self.modalities)

    def _check_output(self, output: Output) -> None:
        """What the output asks of labels and sources; the labels of several outputs are theirs."""
        if (columns := tuple(output.members)) and output.has_labels:
            named = f"nothing beside model.outputs, which names the columns ({', '.join(columns)})"
            check(self.align.label in (None, columns), "align.label", self.align.label, named)
            object.__setattr__(self, "align", replace(self.align, label=columns))
        several = "one column; name an output for each of several under model.outputs"
        check(len(columns) > 0 or len(self.align.labels) < 2, "align.label", self.align.label, several)
        inputs, least = ", ".join(self.modalities), output.least_inputs
        expected = f"sources of at least {least} modalities for output {self.model.output.kind}"
        check(len(self.modalities) >= least, "sources", f"of {inputs} alone", expected)
        expected = f"nothing: output {self.model.output.kind} learns from what samples have together"
        check(output.has_labels or not self.align.labels, "align.label", self.align.label, expected)
        drawn = self.align.pairing is not None and self.align.pairing.draw == "per_epoch"
        expected = f"once: output {self.model.output.kind} learns which contents a sample has"
        check(output.has_labels or not drawn, "align.pairing.draw", "per_epoch", expected)
        self._check_contents(output)
        unsure = self.model.abstain_below > 0 and not output.has_probabilities
        expected = f"0: the answers of output {self.model.output.kind} have no probability"
        check(not unsure, "model.abstain_below", self.model.abstain_below, expected)
        writes = output.reads_answers or bool(output.answers_with) or self.model.generation == GenerationSettings()
        expected = f"nothing: output {self.model.output.kind} generates no text"
        check(writes, "model.generation", to_dict(self.model.generation), expected)

    def _check_contents(self, output: Output) -> None:
        """What an output that makes contents asks: of them, sources, features that keep them, one way to write."""
        answer, kind = ", ".join(output.answers_with), self.model.output.kind
        for modality in output.answers_with:
            there = f"a source of {modality}, of which the model learns what it is to make"
            check(modality in self.modalities, "model.output", kind, there)
            several = self.align.places.get(modality, 1)
            check(most(several) == 1, f"align.several.{modality}", several, f"one: a sample has one {modality} to make")
            try:
                CodecSource.of(self.features, modality)
            except ValueError as error:
                raise ValueError(f"model.output {kind}: {error}") from None
        if output.answers_with:
            check(len(self.inputs) > 0, "sources", ", ".join(self.modalities), f"an input beside {answer}")
            beams = self.model.generation.num_beams
            check(beams == 1, "model.generation.num_beams", beams, f"1: output {kind} is written code by code")

    def _check_prompt(self, output: Output) -> None:
        if self.model.prompt is not None:  # of the texts that there are here
            read_prompt(self.model.prompt, [m for m in self.modalities if self.features.modality(m).is_text])
            own = [label.removeprefix(f"{source.name}.") for label in self.align.labels for source in self.sources]
            for column in self.model.columns:
                expected = f"no label ({', '.join(self.align.labels)}): the model would read what it is to answer"
                check(column not in (*self.align.labels, *own), "model.prompt", f"{{{column}}}", expected)
        if self.model.columns:
            expected = f"no columns: output {self.model.output.kind} would tell rows by them, and search has none"
            is_told = output.has_labels or bool(output.answers_with)
            check(is_told, "model.prompt", str(self.model.prompt), expected)

    def _check_training(self, output: Output) -> None:
        names = [metric.name for metric in output.metrics]
        for column in self.evaluation.sensitive:
            expected = f"no label ({', '.join(self.align.labels)}): each group would be one answer"
            check(column not in self.align.labels, "evaluation.sensitive", column, expected)
        asked = ("promotion", self.promotion.metric, names), ("training", self.training.metric, [*names, "loss"])
        for key, metric, known in asked:
            expected = f"a metric of output {self.model.output.kind} ({', '.join(known)})"
            check(metric is None or metric in known, f"{key}.metric", metric, expected)
        check_objectives(self.training.objectives, output, self.model.output.kind)
        self._check_critic()
        parted = getattr(LAUNCHERS.options(self.launcher), "shard", False)
        expected = "false where launcher.shard parts the layers that it would compile"
        check(not (parted and self.training.compile), "training.compile", True, expected)
        mixing, columns = self.training.mixing or 0.0, self.model.columns
        read = self.modalities, self.features, output, columns, self.align.several
        check_mixing(mixing, *read, self.training.cutmix)
        for modality, settings in self.training.augmentation.items():
            try:
                self.features.featurizer(modality).augmenter(settings, ())
            except ValueError as error:
                raise ValueError(f"training.augmentation.{modality}: {error}") from None

    def _check_critic(self) -> None:
        """What the model is to forget is something else than what it answers, and said of what each row has."""
        if not (column := column_of(self.training.objectives)):
            return
        who, labels = "training.objectives: critic", self.align.labels
        expected = f"no label ({', '.join(labels)}): the model would unlearn what it is to answer"
        check(column not in labels, f"{who}: column", column, expected)
        for objective in self.training.objectives:
            on = getattr(OBJECTIVES.options(objective), "on", FUSED)
            check(on in (FUSED, *self.inputs), f"{who}: on", on, f"one of {', '.join((FUSED, *self.inputs))}")
        drawn = self.align.pairing is not None and self.align.pairing.draw == "per_epoch"
        expected = f"once beside {who}: what a column says of a row is of the items that it was written with"
        check(not drawn, "align.pairing.draw", "per_epoch", expected)

    def _check_tuning(self, tuning: TuningSettings, output: Output) -> None:
        """What a search asks of the rest; the values that it tries are another matter (`try_tuning`)."""
        names = [metric.name for metric in output.metrics]
        expected = f"a metric of output {self.model.output.kind} ({', '.join(names)})"
        check(tuning.metric is None or tuning.metric in names, "tuning.metric", tuning.metric, expected)
        compared = tuning.pruner == "none" or self.training.evaluations > 0
        check(compared, "tuning.pruner", tuning.pruner, "none where training.evaluations is 0")
        sized = [path for path in tuning.space if path.startswith(("model.width", "model.tokens", "model.encoders"))]
        expected = "nothing of what gives encoders their size, beside pretraining: all trials start from the same"
        check(not sized or self.pretraining is None, "tuning.space", ", ".join(sized), expected)
        alone = self.launcher.kind != "torchrun"
        check(alone, "launcher", self.launcher.kind, "subprocess beside tuning: a trial is trained in one process")

    def try_tuning(self) -> None:
        """Raises ValueError where a value that `tuning` is to try, alone, makes no settings that can be trained."""
        for path, value in self.tuning.tried() if self.tuning else ():
            try:
                model, training = with_values(self.model, self.training, {path: value})
                other = replace(self, model=model, training=training, tuning=None)
            except ValueError as error:
                raise ValueError(f"tuning.space.{path}: {value!r} cannot be tried: {error}") from None
            same = "encoders that read the features as they are: others would be made anew for each trial"
            check(other.features == self.features, f"tuning.space.{path}", value, same)

    @property
    def tuned_metric(self) -> Metric:
        """What a search for settings goes by."""
        output, asked = self.make_output(), self.tuning and self.tuning.metric
        beside = None if self.training.metric == "loss" else self.training.metric
        return output.metric(asked or beside)

    def _fitting(self, source: SourceSettings) -> SourceSettings:
        """A source as its modality's features need it: they decide whether a column of a table holds vectors."""
        modality = source.modality
        if not isinstance(self.features.modality(modality), VectorModality):
            expected = f"another kind, or features.{modality}: {{kind: vector, width: ...}}, which reads vectors"
            check(source.kind != "vectors", f"source {source.name!r}: kind", source.kind, expected)
            return source
        because = f"features.{modality} reads vectors"
        cut = None if source.segments is None else source.segments.plain()
        check(cut is None, f"source {source.name!r}: segments", cut, f"none: {because}, and they are not cut")
        check(source.use == "samples", f"source {source.name!r}: use", source.use, f"samples: {because}, no recordings")
        kinds = [c.kind for name, listed in self.filters.items() if modality in name.split("+") for c in listed]
        check(not kinds, f"filters.{modality}", kinds, f"none: {because}, and filters judge media and texts")
        return source.of_vectors()

    @property
    def cleaning(self) -> TextCleaning | None:
        """How texts are cleaned; None: they are vectors."""
        texts = (m for m in MODALITIES if catalog.MODALITIES.load(m).is_text)
        options = (self.features.modality(m).options for m in texts)
        return next((one for one in options if isinstance(one, TextCleaning)), None)

    @property
    def root(self) -> Path:
        """The folder that relative paths start from."""
        return self.path.parent

    def make_sources(self) -> dict[str, "Source"]:
        """The sources by name."""
        return {source.name: source.make(self.root) for source in self.sources}

    @property
    def modalities(self) -> tuple[str, ...]:
        """Those that some source of samples gives."""
        of_samples = {source.modality for source in self.sources if source.use == "samples"}
        return tuple(m for m in MODALITIES if m in of_samples)

    @property
    def named_columns(self) -> dict[str, str]:
        """Columns of samples that settings beside the prompt name -> which one does, as the beginning of a sentence."""
        named = {column: f"evaluation.sensitive names {column}" for column in self.evaluation.sensitive}
        named |= {column: f"card.{name} is {column}" for name, column in self.card.columns.items()}
        if self.personalization is not None:
            named |= {self.personalization.group: f"personalization.group is {self.personalization.group}"}
        critic = column_of(self.training.objectives)
        return named | ({critic: f"training.objectives: critic: column is {critic}"} if critic else {})

    @property
    def asked_columns(self) -> tuple[str, ...]:
        """Those of a sample's other columns that models are asked with."""
        groups = () if self.personalization is None else (self.personalization.group,)
        return tuple(dict.fromkeys([*self.model.columns, *groups]))

    @property
    def inputs(self) -> tuple[str, ...]:
        """Those that models read."""
        return self.make_output().inputs(self.modalities)

    def make_output(self) -> Output:
        """What the models answer with."""
        return OUTPUTS.make(self.model.output, {})

    def filters_of(self, modality: str) -> dict[str, Filter]:
        """The filters of a modality, by kind."""
        choices = self.filters.get(modality, ())
        return {choice.kind: FILTERS.make(choice, scope=modality) for choice in choices}

    def signature_of(self, modality: str) -> tuple[str, Signature] | None:
        """What signs the contents of a modality, after its kind; None: nothing does."""
        choice = self.duplicates[modality]
        if choice == OFF:
            return None
        return choice.kind, SIGNATURES.make(choice, scope=modality)

    def keeps_one(self, modality: str) -> bool:
        """Whether of near duplicates of a modality only one becomes samples."""
        signed = self.signature_of(modality)
        return signed is not None and signed[1].options.keep == "one"

    @property
    def pair_filters(self) -> dict[str, Filter]:
        """Two modalities, such as text+image -> the filter of samples that have both."""
        return {
            name: FILTERS.make(choices[0], scope=name)
            for name, choices in self.filters.items()
            if "+" in name and choices
        }

    def segments_of(self, modality: str) -> dict[str, "Segments"]:
        """What finds the parts of items of a modality, by what the manifest calls it."""
        cutters = filter(None, (source.cutter() for source in self.sources if source.modality == modality))
        return {name: segments for name, segments in cutters if segments.finds}

    @property
    def cuts(self) -> bool:
        """Whether the items of some source are cut."""
        return any(source.segments is not None for source in self.sources)

    @property
    def of_samples(self) -> tuple[str, ...]:
        """The sources whose items become samples."""
        return tuple(source.name for source in self.sources if source.use == "samples")

    @property
    def noise(self) -> tuple[str, ...]:
        """The sources that augmentation draws from."""
        return tuple(source.name for source in self.sources if source.use == "noise")

    @property
    def folder(self) -> Path:
        """This project's part of TRIPTYCH_HOME: lake, cache and checkpoints."""
        return self.home / "projects" / self.name

    @property
    def spill(self) -> Path:
        return self.folder / "spill"

    @property
    def lake_uri(self) -> str:
        return self.lake or str(self.folder / "lake")

    @property
    def artifacts_uri(self) -> str | None:
        """None: MLflow's server says."""
        if self.artifacts is not None:
            return self.artifacts if "://" in self.artifacts else str((self.root / self.artifacts).absolute())
        return None if self.mlflow_uri.startswith("http") else str(self.home / "artifacts")

    @property
    def mlflow_uri(self) -> str:
        return self.tracking_uri or f"sqlite:///{self.home / 'mlflow.db'}"
