"""What the trainer is asked to do: plain values that cross from the orchestrator to another process or machine.

Needs neither torch nor MLflow, so that the orchestrator can tell whether a training has been done already.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from training import family
from training.catalog import CODECS, OUTPUTS, PRETRAINED_ENCODERS, VARIANTS
from training.codecs.options import Source
from training.family import Choice
from training.features import FeatureSettings
from training.federation.settings import FederationSettings
from training.model_files import digest, llm_folder, model_folder
from training.personalization_settings import PersonalizationSettings
from training.preference_settings import PreferenceSettings
from training.pretraining_settings import PretrainingSettings
from training.rewriting import identity as identity_of_texts
from training.schema import fingerprint
from training.settings import (
    TINY,
    MediaLimits,
    ModelSettings,
    TextAugmentation,
    TrainingSettings,
    complete,
    decisive,
)
from training.tuning_settings import TuningSettings, with_values
from training.validation import from_dict, to_dict
from training.variants.base import name_of
from training.views import Places

VERSION = 9  # count up when the same settings and data would train another model, or its run would hold other things
VARIANT_VERSION = 1  # count up when the same variant would be measured otherwise, or its run would hold other things
FULL = "full"  # what a version is called beside its variants
CODEC_VERSION = 1  # count up when the same contents would make another codec
PRETRAINING_VERSION = 1  # count up when the same rows would make other encoders
PREFERENCE_VERSION = 1  # count up when the same feedback would make another model, or its run would hold other things
PREFERENCE = "preference"  # what the champion that has learned from feedback is called beside the model
NEUTRAL = ("abstain_below",)  # settings of the model that decide no weight
_PACKAGES = ("accelerate", "numpy", "peft", "scipy", "tokenizers", "torch", "transformers")


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """One model to train: the product, or a baseline that sees only the modalities in `keep`."""

    name: str  # model | preference | text | image | speech | concat
    model: ModelSettings
    training: TrainingSettings
    keep: tuple[str, ...]
    noise: dict[str, tuple[str, ...]]  # modality -> contents of the clips that augmentation adds to it
    several: dict[str, Any]  # modality -> contents of it that a row may have, or its views, where that is not one
    fingerprint: str  # of everything that decides the weights
    federation: FederationSettings | None = None  # where silos train it, or this is one
    personalization: PersonalizationSettings | None = None  # groups have adapters of their own

    @property
    def columns(self) -> tuple[str, ...]:
        """Those of a sample's other columns that the model is asked with."""
        groups = () if self.personalization is None else (self.personalization.group,)
        return tuple(dict.fromkeys([*self.model.columns, *groups]))

    @property
    def is_baseline(self) -> bool:
        return self.name not in ("model", PREFERENCE)


@dataclass(frozen=True, kw_only=True)
class CodecSpec:
    """A codec to train, once for the same contents and settings, or one that was."""

    modality: str
    codec: Any  # kind and options, as the project file says it
    fingerprint: str  # of everything that decides its weights

    @property
    def name(self) -> str:
        return f"{self.modality}_codec"


@dataclass(frozen=True, kw_only=True)
class PretrainingSpec:
    """Encoders to train without labels, once for the same contents and settings, or that were."""

    settings: PretrainingSettings
    model: ModelSettings
    training: TrainingSettings
    keep: tuple[str, ...]  # modalities that the model reads
    several: dict[str, Any]  # as of RunSpec
    left_out: tuple[str, ...]  # samples without a label that have to do with those that models are judged by
    fingerprint: str  # of everything that decides the weights

    name = "pretraining"


@dataclass(frozen=True, kw_only=True)
class PreferenceSpec:
    """What a registered version learns from."""

    settings: PreferenceSettings
    reference: str  # the version
    version: int  # of the Delta table `preferences`


@dataclass(frozen=True, kw_only=True)
class TuningSpec:
    """A search for better settings of the one model of a job."""

    settings: TuningSettings
    metric: str  # of the validation rows
    storage: str  # the SQLite file of Optuna's studies
    noise: dict[str, tuple[str, ...]]  # as of a RunSpec, whatever it augments
    fingerprint: str  # of the study: of all that decides what a trial comes to, and which there are

    def trial(self, number: int) -> str:
        """The fingerprint of a trial, from 1."""
        return fingerprint("trial", self.fingerprint, number)


@dataclass(frozen=True, kw_only=True)
class VariantSpec:
    """A form of a registered version to make and measure, once for the same version and test rows; or the version as it
    is, to be measured in the same way."""

    name: str  # int8, pruned-0.7, ...; FULL: the version as it is
    variant: Any  # kind and options, as the project file says it; None: the version as it is
    of: str  # the version
    inputs: tuple[str, ...]  # the modalities that are shown
    fingerprint: str  # of everything that decides its weights, and of the rows

    @property
    def role(self) -> str:
        """Of its run in MLflow."""
        return f"variant {self.name}"


@dataclass(frozen=True, kw_only=True)
class JobSpec:
    """One trainer process: a snapshot, where things lie, and the models to train on it, in order."""

    project: str
    lake: str
    storage_options: dict[str, str]
    dataset: str  # fingerprint
    version: int  # of the Delta table `dataset`
    feature_fingerprints: dict[str, str]  # modality -> fingerprint of its rows
    augmented_fingerprints: dict[str, str] = field(default_factory=dict)  # of those that only augmentation reads
    features: FeatureSettings
    limits: MediaLimits
    tracking_uri: str
    artifacts: str | None  # where MLflow keeps files, when it makes the experiment
    cache: str  # folder of the memory-mapped features
    checkpoints: str  # folder
    tags: dict[str, str]
    answers: str = "label"  # the column that says what a model answers
    own_code: str = ""  # folder where users' own kinds may lie, beside what PYTHONPATH says
    codecs: tuple[CodecSpec, ...] = ()  # of the contents that models answer with; trained where there are no runs
    pretraining: PretrainingSpec | None = None  # what the models start from; trained where there are no runs
    preference: PreferenceSpec | None = None  # then the one run is what a version comes to that learns from it
    tuning: TuningSpec | None = None  # then the one run is where its trials start from, and is not trained itself
    variants: tuple[VariantSpec, ...] = ()  # of one version; made and measured where there are no runs
    runs: tuple[RunSpec, ...]

    def to_json(self) -> dict[str, Any]:
        return to_dict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "JobSpec":
        runs = tuple(from_dict(RunSpec, run) for run in values["runs"])
        codecs = tuple(from_dict(CodecSpec, codec) for codec in values["codecs"])
        variants = tuple(from_dict(VariantSpec, variant) for variant in values["variants"])
        read = ("runs", "codecs", "pretraining", "preference", "tuning", "variants", "features", "limits")
        plain = {n: value for n, value in values.items() if n not in read}
        return cls(
            **plain,
            features=from_dict(FeatureSettings, values["features"]),
            limits=from_dict(MediaLimits, values["limits"]),
            codecs=codecs,
            pretraining=values["pretraining"] and from_dict(PretrainingSpec, values["pretraining"]),
            preference=values["preference"] and from_dict(PreferenceSpec, values["preference"]),
            tuning=values["tuning"] and from_dict(TuningSpec, values["tuning"]),
            variants=variants,
            runs=runs,
        )


def plan_codec(choice: Any, modality: str, features: FeatureSettings, contents: Sequence[str], step: str) -> CodecSpec:
    """Args: `contents` of the training rows, `step` the fingerprint of their features; `choice` as the project file
    says it."""
    chosen = CODECS.choose(choice, modality)
    known: Any = family.identity(chosen)
    if model := chosen.options.get("model"):  # a pretrained one learns nothing of contents
        known, contents = [known, digest(model_folder(model))], ()
    source = asdict(Source.of(features, modality))
    versions = {package: metadata.version(package).partition("+")[0] for package in ("torch", "torchaudio")}
    name = fingerprint("codec", CODEC_VERSION, modality, known, source, versions, step, sorted(set(contents)))
    return CodecSpec(modality=modality, codec=chosen.plain(), fingerprint=name)


def plan_pretraining(
    settings: PretrainingSettings,
    model: ModelSettings,
    training: TrainingSettings,
    features: FeatureSettings,
    modalities: Sequence[str],
    contents: str,
    several: Mapping[str, Places],
    left_out: Sequence[str],
) -> PretrainingSpec:
    """Args: `contents` names the rows that are learned from, without their labels, and how their features were made."""
    keep = OUTPUTS.make(model.output, {}).inputs(modalities)
    read = identity(model)
    shape = {name: read[name] for name in ("encoders", "llm", "layers", "width", "heads", "tokens", "dropout")}
    batches = {m: features.at_batch(m) for m in keep}
    versions = {package: metadata.version(package).partition("+")[0] for package in _PACKAGES}
    changed = _augmentation_identity(training)
    name = fingerprint(
        "pretraining",
        PRETRAINING_VERSION,
        to_dict(settings),
        shape,
        batches,
        changed,
        versions,
        contents,
        dict(several),
    )
    return PretrainingSpec(
        settings=settings,
        model=model,
        training=training,
        keep=tuple(keep),
        several=dict(several),
        left_out=tuple(left_out),
        fingerprint=name,
    )


def plan_variants(
    choices: Sequence[Choice], version: str, training: str, dataset: str, inputs: Sequence[str]
) -> list[VariantSpec]:
    """The version as it is, and then its variants.

    Args:
        training: fingerprint of what made the version.
        dataset: fingerprint of the snapshot whose test rows are answered.
    """

    def spec(name: str, choice: Choice | None) -> VariantSpec:
        kind = None if choice is None else VARIANTS.load(choice.kind)
        packages = (*_PACKAGES, *(() if kind is None else kind.packages))
        versions = {package: metadata.version(package).partition("+")[0] for package in packages}
        of = None if kind is None or choice is None else [family.identity(choice), kind.version]
        known = fingerprint("variant", VARIANT_VERSION, of, version, training, dataset, list(inputs), versions)
        plain = None if choice is None else choice.plain()
        return VariantSpec(name=name, variant=plain, of=version, inputs=tuple(inputs), fingerprint=known)

    return [spec(FULL, None), *(spec(name_of(choice), choice) for choice in choices)]


def plan_runs(
    model: ModelSettings,
    training: TrainingSettings,
    features: FeatureSettings,
    modalities: Sequence[str],
    dataset: str,
    noise: Mapping[str, Sequence[str]] | None = None,
    several: Mapping[str, Places] | None = None,
    codecs: Sequence[CodecSpec] = (),
    pretraining: PretrainingSpec | None = None,
    federation: FederationSettings | None = None,
    personalization: PersonalizationSettings | None = None,
) -> list[RunSpec]:
    """The model itself, on all modalities that the project has, and what it must beat: each modality alone (where the
    output can answer by one), and plain concatenation (unless the model is that itself); these are the same model
    otherwise, trained for `baseline_epochs`.

    Args:
        dataset: the snapshot's fingerprint.
        noise: modality -> contents of the clips that augmentation adds to it.
        several: modality -> contents of it that a row may have, where that is not one, or its views.
        codecs: of the contents that it answers with.
        pretraining: what the encoders of all start from.
        federation: where silos train the model, or this is one of them; baselines are of the rows that are here.
        personalization: of the model itself.
    """
    output = OUTPUTS.make(model.output, {})
    modalities = output.inputs(modalities)
    made = [codec.fingerprint for codec in codecs]
    start = {} if pretraining is None else {"pretraining": pretraining.fingerprint}
    versions = {package: metadata.version(package).partition("+")[0] for package in _PACKAGES}
    # Features that are applied when a batch is made, so that the dataset's fingerprint does not know them.
    batches = {m: features.at_batch(m) for m in modalities}
    clips = {m: tuple(sorted(ids)) for m, ids in (noise or {}).items() if m in training.augmentation and ids}

    def run(
        name: str,
        model: ModelSettings,
        training: TrainingSettings,
        keep: Sequence[str],
        federation: FederationSettings | None = None,
    ) -> RunSpec:
        places = {m: most for m, most in (several or {}).items() if m in keep}
        personal = personalization if name == "model" else None
        settings = (
            identity(model),
            training_identity(training),
            sorted(keep),
            batches,
            *filter(None, (clips, places, made, start, federation and federation.shared())),
            *filter(None, (personal and {"personalization": to_dict(personal)},)),
        )
        # With its role: a model is registered, and a baseline of the same settings is not, so neither stands for both.
        name_of_all = fingerprint("training", VERSION, name, versions, dataset, *settings)
        return RunSpec(
            name=name,
            model=model,
            training=training,
            keep=tuple(keep),
            noise=clips,
            several=places,
            fingerprint=name_of_all,
            federation=federation,
            personalization=personal,
        )

    # A baseline that cannot stop early is validated once, at its end: generating answers takes as long as training.
    often = training.evaluations if training.early_stopping is not None else min(1, training.evaluations)
    beside = replace(training, epochs=training.baseline_epochs or training.epochs, evaluations=often)
    baselines = [run(m, model, beside, (m,)) for m in modalities if len(modalities) > 1 and output.answers_alone]
    if (concat := replace(model, fusion=Choice("concat"))) != model:
        baselines.append(run("concat", concat, beside, modalities))
    if federation is not None:  # a linear model would be fitted on the rows of all
        model = replace(model, linear_share=0.0)
        training = replace(training, epochs=federation.rounds * federation.epochs)
    return [run("model", model, training, modalities, federation), *baselines]


def plan_preference(
    settings: PreferenceSettings, model: RunSpec, reference: str, training: str, pairs: str, version: int
) -> tuple[RunSpec, PreferenceSpec]:
    """Args: `model` as the present settings ask for it, `training` the fingerprint of what made the version
    `reference`, `pairs` that of what it learns from, which is that version of the table."""
    versions = {package: metadata.version(package).partition("+")[0] for package in _PACKAGES}
    name = fingerprint(PREFERENCE, PREFERENCE_VERSION, to_dict(settings), training, pairs, versions, model.fingerprint)
    spec = PreferenceSpec(settings=settings, reference=reference, version=version)
    return replace(model, name=PREFERENCE, fingerprint=name), spec


def plan_tuning(
    settings: TuningSettings, metric: str, storage: str, noise: Mapping[str, Sequence[str]], model: RunSpec
) -> TuningSpec:
    """Args: `noise` is modality -> contents of all clips; `model` what the trials start from."""
    clips = {modality: tuple(sorted(ids)) for modality, ids in noise.items()}
    name = fingerprint("tuning", VERSION, model.fingerprint, settings.decisive(), metric, clips)
    return TuningSpec(settings=settings, metric=metric, storage=storage, noise=clips, fingerprint=name)


def trial_run(tuning: TuningSpec, model: RunSpec, forms: Mapping[str, str], values: Mapping[str, Any]) -> RunSpec:
    """The training of a trial: the model with other settings.

    Args:
        forms: modality -> form of its features.
        values: dotted key -> what it is in this trial.

    Raises:
        ValueError: the settings do not take them.
    """
    settings, training = with_values(model.model, model.training, values)
    return replace(
        model,
        model=complete(settings, {m: form for m, form in forms.items() if m in model.model.encoders}),
        training=training,
        noise={modality: ids for modality, ids in tuning.noise.items() if modality in training.augmentation},
    )


def shorter_training(runs: Sequence[RunSpec]) -> str | None:
    """How much less than the model the baselines are trained, to be said wherever their figures stand beside the
    model's; None: as long."""
    epochs = {run.is_baseline: run.training.epochs for run in runs}
    if epochs.get(True) in (None, epochs[False]):
        return None
    model = "as many as its rows ask for (`training.epochs`)" if epochs[False] is None else f"{epochs[False]:g}"
    return f"the baselines were trained for {epochs[True]:g} epochs, the model for {model}"


def identity(model: ModelSettings) -> dict[str, Any]:
    """The settings as plain values; a language model is known by its files, wherever they lie, and a user's own kind by
    its code.

    Raises:
        ValueError: the language model is not there.
    """
    values = {name: value for name, value in to_dict(model).items() if name not in NEUTRAL} | {
        "encoders": {modality: _encoder_identity(choice) for modality, choice in model.encoders.items()},
        "fusion": family.identity(model.fusion),
        "output": family.identity(model.output),
    }
    if model.llm.model == TINY:
        return values
    return values | {"llm": {**model.llm.adaptation(), "model": digest(llm_folder(model.llm.model))}}


def _encoder_identity(choice: Choice) -> Any:
    """A pretrained one is known by the files of its model."""
    if choice.kind not in PRETRAINED_ENCODERS:
        return family.identity(choice)
    options = {name: value for name, value in choice.options.items() if name != "weights"}
    folder = model_folder(options["model"], choice.options.get("weights", ""))
    return Choice(choice.kind, {**options, "model": digest(folder)}).plain()


def training_identity(training: TrainingSettings) -> dict[str, Any]:
    """What of the training's settings decides the weights, as plain values; own objectives are known by their code."""
    more = {} if training.adversary is None else {"adversary": family.identity(training.adversary)}
    more |= {"augmentation": _augmentation_identity(training)}
    return decisive(training) | more | {"objectives": [family.identity(choice) for choice in training.objectives]}


def _augmentation_identity(training: TrainingSettings) -> dict[str, Any]:
    """As plain values; a file is known by its content."""
    plain: dict[str, Any] = to_dict(training.augmentation)
    for modality, section in training.augmentation.items():
        if isinstance(section, TextAugmentation):
            plain[modality] = plain[modality] | identity_of_texts(section)
    return plain


def own_code(model: ModelSettings, features: FeatureSettings) -> list[Path]:
    """The files and folders of users' own kinds that a model needs to answer; each once."""
    choices = [*model.encoders.values(), model.fusion, model.output]
    # A processor makes all features, whatever the model reads.
    paths = [family.own_module(kind) for kind in (*(choice.kind for choice in choices), *features.own_kinds())]
    return sorted({path for path in paths if path is not None})
