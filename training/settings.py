"""Settings of featurizing, model, training and promotion: frozen dataclasses, checked where they are made.

Plain dataclasses, since a GPU machine may lack pydantic; `orchestration.project` reads them from YAML through
pydantic, which runs the same checks and names the key path.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import InitVar, dataclass, field
from typing import Annotated, Any, Literal

from training.adaptation import Adaptation
from training.catalog import (
    ADVERSARIES,
    DEFAULT_ENCODERS,
    ENCODERS,
    FUSIONS,
    MODALITIES,
    OBJECTIVES,
    OUTPUTS,
    PRETRAINED_ENCODERS,
)
from training.family import Choice, Family
from training.personal_data import KINDS
from training.prompt import Chat, columns, named, read_prompt
from training.validation import FORBID_EXTRA, OneOrMore, Strings, Word, check, to_dict, validated

SMALLEST_VOCABULARY = 256 + 3  # every byte, so that any text can be written, and the special tokens
TINY = "tiny"  # the language model that is made here
# Of a training that is not told its epochs: few hundred rows are few steps, after which nothing is learned yet.
_EPOCHS, _MOST_EPOCHS, _ENOUGH_STEPS = 10, 100, 600
_EVALUATIONS, _PATIENCE = 12, 3


DECODING = ("max_decode_memory", "max_decode_seconds")  # of MediaLimits: what decoding may cost


def choose(settings: Any, name: str, family: Family, scope: str | None = None) -> None:
    """In `__post_init__`: the field `name`, as the project file says it, becomes a checked Choice of the family."""
    object.__setattr__(settings, name, family.choose(getattr(settings, name), scope))


@dataclass(frozen=True, kw_only=True)
class MediaLimits:
    """What a media file may be before it is decoded, and cost while it is; more is quarantined."""

    __pydantic_config__ = FORBID_EXTRA
    max_bytes: int = 512 * 2**20
    max_pixels: int = 100_000_000
    max_seconds: float = 3600.0
    max_characters: int = 1_000_000
    # Of media, which are decoded in processes of their own (DECODING).
    max_decode_memory: int = 2**30  # bytes beside the file itself
    max_decode_seconds: float = 60.0  # of one core

    def __post_init__(self) -> None:
        for name in ("max_bytes", "max_seconds", "max_characters", *DECODING):
            check(getattr(self, name) > 0, name, getattr(self, name), "a positive number")
        # Pillow refuses more, whatever is set here.
        check(0 < self.max_pixels <= 178_956_970, "max_pixels", self.max_pixels, "1 to 178956970")


@dataclass(frozen=True, kw_only=True)
class TextCleaning:
    """How a text is cleaned, whatever its features."""

    __pydantic_config__ = FORBID_EXTRA
    # Unicode normalisation. NFKC makes one of what looks alike, and changes what is said: ？ is ?, ½ is 1⁄2, m² is m2.
    form: Literal["NFC", "NFKC", "none"] = "NFC"
    language: str = "auto"  # ISO 639-1 code, or "auto": found for each text
    lowercase: bool = False
    # What becomes of personal data (`training.personal_data`): mask puts [EMAIL], [PHONE], ... in their place, in the
    # other columns of tables, too; quarantine refuses the text.
    personal_data: Literal["keep", "mask", "quarantine"] = "keep"
    personal_kinds: Strings = KINDS
    phone_regions: Strings = ()  # ISO 3166: whose numbers are found without +49 before them, too

    def __post_init__(self) -> None:
        for kind in self.personal_kinds:
            check(kind in KINDS, "personal_kinds", kind, f"kinds of personal data ({', '.join(KINDS)})")
        for region in self.phone_regions:
            is_code = len(region) == 2 and region.isascii() and region.isupper()
            check(is_code, "phone_regions", region, "ISO 3166 codes of countries, such as US")


@dataclass(frozen=True, kw_only=True)
class LlmSettings(Adaptation):
    """The language model, and how it is trained; a project file may say the model alone, as a word."""

    __pydantic_config__ = FORBID_EXTRA
    model: str = TINY  # trained from scratch; or a Hugging Face name or local folder of a causal LM

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.model != "", "model", self.model, f"{TINY}, or a Hugging Face name or local folder")
        trained = self.train == "full" or self.model != TINY
        check(trained, "train", self.train, f"full where model is {TINY}: nobody has trained that before")

    def __str__(self) -> str:
        return self.model + "".join(f" {name}={value}" for name, value in self.adaptation().items())

    def adaptation(self) -> dict[str, Any]:
        """How it is trained: those settings that are not the defaults, as plain values."""
        values = {field.name: (getattr(self, field.name), field.default) for field in dataclasses.fields(Adaptation)}
        return to_dict({name: value for name, (value, default) in values.items() if value != default})

    def plain(self) -> Any:
        """As the project file says it: a word, or a mapping."""
        return {"model": self.model, **changed} if (changed := self.adaptation()) else self.model

    @classmethod
    def from_plain(cls, value: Any) -> "LlmSettings":
        if isinstance(value, str):
            return cls(model=value)
        return cls(**value | {"targets": tuple(value.get("targets", ()))})


@dataclass(frozen=True, kw_only=True)
class GenerationSettings:
    """How a text is written: names and meanings are those of Hugging Face's `GenerationConfig`."""

    __pydantic_config__ = FORBID_EXTRA
    num_beams: int = 1  # texts that are followed at once; the answer is the best of them, and `best` are all
    length_penalty: float = 0.0  # of beams: 0 finds the most probable text, more prefers longer ones
    repetition_penalty: float = 1.0
    do_sample: bool = False  # draws each token: the same text for the same row
    temperature: float = 1.0  # of the draw, as the next two
    top_k: int = 0  # only so many of the likeliest tokens; 0: all
    top_p: float = 1.0  # only the likeliest tokens that have so much probability together

    def __post_init__(self) -> None:
        check(self.num_beams >= 1, "num_beams", self.num_beams, "at least 1")
        check(self.top_k >= 0, "top_k", self.top_k, "0 (all tokens) or more")
        check(0 < self.top_p <= 1, "top_p", self.top_p, "above 0, up to 1")
        for name in ("temperature", "repetition_penalty"):
            check(getattr(self, name) > 0, name, getattr(self, name), "a positive number")
        both = self.do_sample and self.num_beams > 1
        check(not both, "num_beams", self.num_beams, "1 where do_sample draws the text")
        beams = self.num_beams > 1 or self.length_penalty == 0
        check(beams, "length_penalty", self.length_penalty, "0 without beams (num_beams)")
        for name, all_of in (("temperature", 1), ("top_k", 0), ("top_p", 1)):
            value = getattr(self, name)
            check(self.do_sample or value == all_of, name, value, f"{all_of} where nothing is drawn (do_sample: true)")


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    __pydantic_config__ = FORBID_EXTRA
    # Modality -> encoder (`training.catalog.ENCODERS`); which there are depends on its features, see `complete`.
    encoders: dict[str, Choice] = field(default_factory=dict)
    fusion: Choice = field(default_factory=lambda: Choice("attention"))
    llm: Annotated[LlmSettings, Word("model")] = field(default_factory=LlmSettings)
    output: Choice = field(default_factory=lambda: Choice("text"))
    # Column -> kind, in the place of `output`: several answers at once (`training.outputs.several`).
    outputs: InitVar[dict[str, Any] | None] = None
    width: int = 96  # of encoders, fusion and the tiny language model
    layers: int = 3  # of the tiny language model
    heads: int = 4
    tokens: int = 4  # soft tokens per modality that go into the fusion
    dropout: float = 0.0
    # How much of an answer a linear model of the vectors gives (`training.linear_model`), of those that are given by a
    # linear layer; null: what makes the validation rows most likely; 0: it is not there.
    linear_share: float | None = None
    modality_dropout: float = 0.1  # chance that a present modality of a training row is hidden, per row and modality
    # Chance that one of several contents of a modality is hidden from a training row, of each; the last one never is. A
    # tenth, as of modalities: of six views that all rows have (`concat`, made data, three seeds) four are then answered
    # as well as six, 0.95, instead of 0.87; all six 0.95, instead of 0.96
    item_dropout: float = 0.1
    # What the language model reads (`training.prompt`), which may name columns; null: the soft tokens, then the text if
    # it reads one.
    prompt: Any = None
    max_new_tokens: int = 16
    generation: GenerationSettings = field(default_factory=GenerationSettings)
    # An answer that is less probable than that is not given, and says so. Trains nothing anew.
    abstain_below: float = 0.0

    def __post_init__(self, outputs: dict[str, Any] | None) -> None:
        choose(self, "fusion", FUSIONS)
        if outputs is not None:
            check(self.output == Choice("text"), "output", str(self.output), "nothing beside outputs")
            object.__setattr__(self, "output", {"kind": _kind_of(outputs), "outputs": outputs})
        choose(self, "output", OUTPUTS)
        if not isinstance(self.llm, LlmSettings):
            object.__setattr__(self, "llm", LlmSettings.from_plain(self.llm))
        for name in ("width", "layers", "heads", "tokens", "max_new_tokens"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        if self.prompt is not None:
            texts = [m for m in MODALITIES.names() if MODALITIES.load(m).is_text]
            object.__setattr__(self, "prompt", read_prompt(self.prompt, texts))
            turns = isinstance(self.prompt, Chat) and self.llm.model == TINY
            check(not turns, "prompt", self.prompt, "one string: `llm: tiny` has no chat template")
        share = self.linear_share
        check(share is None or 0 <= share <= 1, "linear_share", share, "null or 0 to 1")
        check(self.width % (2 * self.heads) == 0, "width", self.width, f"a multiple of 2 * heads ({2 * self.heads})")
        for name in ("dropout", "modality_dropout", "item_dropout", "abstain_below"):
            check(0 <= getattr(self, name) < 1, name, getattr(self, name), "0 up to (not including) 1")

    @property
    def columns(self) -> tuple[str, ...]:
        """Of the samples, those that `prompt` names."""
        return () if self.prompt is None else columns(named(self.prompt))


def _kind_of(outputs: Mapping[str, Any]) -> str:
    """Of several outputs together: those that make contents are written one after the other, others side by side."""
    kinds = [value.get("kind") if isinstance(value, Mapping) else value for value in outputs.values()]
    known = [kind for kind in kinds if kind in OUTPUTS.names()]
    makes = [bool(getattr(OUTPUTS.load(kind), "modality", "")) for kind in known]
    return "contents" if makes and all(makes) else "several"


def complete(model: ModelSettings, forms: Mapping[str, str]) -> ModelSettings:
    """The settings with an encoder for each modality, checked against the form of its features.

    Args:
        forms: modality -> form (`training.featurizers.base`).

    Raises:
        ValueError: there is no such modality, or no such encoder for what its features are.
    """
    for modality in model.encoders:
        check(modality in forms, "model.encoders", modality, f"modalities of the sources ({', '.join(forms)})")
    encoders = {}
    for modality, form in forms.items():
        encoder = model.encoders.get(modality) or DEFAULT_ENCODERS.get(form)
        if encoder is None:
            raise ValueError(
                f"no encoder here reads features of the form {form}: name one as model.encoders.{modality}"
            )
        try:
            encoders[modality] = ENCODERS.choose(encoder, form)
        except ValueError as error:
            raise ValueError(f"model.encoders.{modality}: {error}") from None
    return dataclasses.replace(model, encoders=encoders)


@dataclass(frozen=True, kw_only=True)
class SpeechAugmentation:
    """How far a training row's speech may be changed, either way; drawn anew for each row and epoch. 0: not at all."""

    __pydantic_config__ = FORBID_EXTRA
    # Share of the tempo. What a pretrained encoder in the model reads is played faster, so that the pitch goes with it.
    speed: float = 0.0
    pitch: float = 0.0  # semitones; moves formants, too, as another speaker's vocal tract does
    gain_db: float = 0.0  # before noise is added: features do not know loudness otherwise
    noise_snr_db: tuple[float, float] | None = None  # from, to: level of added noise (sources with `use: noise`)
    noise_chance: float = 0.5  # that a row gets noise, where noise_snr_db is set
    reverb_chance: float = 0.0  # that a row sounds as in a room, whose impulse response is drawn, too
    reverb_seconds: tuple[float, float] = (0.1, 0.6)  # from, to: until its echo is 60 dB below
    time_masks: int = 0  # SpecAugment
    frequency_masks: int = 0  # likewise; an encoder that reads the waveform itself knows no bands
    mask_share: float = 0.15  # of all frames or features: the widest mask

    def __post_init__(self) -> None:
        check(0 <= self.speed <= 0.5, "speed", self.speed, "0 to 0.5")
        check(0 <= self.pitch <= 12, "pitch", self.pitch, "0 to 12 semitones")
        check(0 <= self.gain_db <= 60, "gain_db", self.gain_db, "0 to 60 decibels")
        low, high = self.noise_snr_db or (0, 0)
        check(low <= high, "noise_snr_db", self.noise_snr_db, "the lower level first")
        shortest, longest = self.reverb_seconds
        check(0 < shortest <= longest <= 10, "reverb_seconds", self.reverb_seconds, "above 0 to 10, the shorter first")
        for name in ("noise_chance", "reverb_chance", "mask_share"):
            check(0 <= getattr(self, name) <= 1, name, getattr(self, name), "0 to 1")
        for name in ("time_masks", "frequency_masks"):
            check(0 <= getattr(self, name) <= 20, name, getattr(self, name), "0 to 20")


@dataclass(frozen=True, kw_only=True)
class ImageAugmentation:
    """As `SpeechAugmentation`, for pictures."""

    __pydantic_config__ = FORBID_EXTRA
    rotation: float = 0.0  # degrees
    scale: float = 0.0  # share of the size
    shift: float = 0.0  # share of the side
    # RandAugment (Cubuk et al. 2020): so many operations one after the other, drawn from torchvision's (brightness,
    # contrast, shear, posterize, ...), each of that strength of 30
    operations: int = 0
    magnitude: int = 9

    def __post_init__(self) -> None:
        check(0 <= self.rotation <= 180, "rotation", self.rotation, "0 to 180 degrees")
        check(0 <= self.operations <= 10, "operations", self.operations, "0 to 10")
        check(0 <= self.magnitude <= 30, "magnitude", self.magnitude, "0 to 30")
        for name in ("scale", "shift"):
            check(0 <= getattr(self, name) <= 0.5, name, getattr(self, name), "0 to 0.5")


@dataclass(frozen=True, kw_only=True)
class TextAugmentation:
    """As `SpeechAugmentation`, for texts: chances, of each word."""

    __pydantic_config__ = FORBID_EXTRA
    delete: float = 0.0  # that it is left out
    swap: float = 0.0  # that it changes places with the next one
    typos: float = 0.0  # of each letter of a keyboard: that another key is hit, or it is left out, doubled or swapped
    synonyms: str | None = None  # a file: a line for each group of words that mean the same, with commas between them
    replace: float = 0.2  # that another word of its group stands there, where `synonyms` are
    back_translation: float = 0.0  # that the text is first said in other words (`features.text.back_translation`)
    units: Literal["words", "characters"] = "words"  # of Chinese: as cleaning segments it, or each character

    def __post_init__(self) -> None:
        for name in ("delete", "swap", "typos", "replace", "back_translation"):
            check(0 <= getattr(self, name) <= 1, name, getattr(self, name), "0 to 1")


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    __pydantic_config__ = FORBID_EXTRA
    # null: 10; or more, with early stopping, where a model without pretrained networks has few rows (`for_rows`)
    epochs: float | None = None
    batch_size: int = 64
    learning_rate: float = 3e-4
    weight_decay: float = 0.01
    warmup: float = 0.05  # share of all steps
    label_smoothing: float = 0.0
    # What is minimised: the weighted sum of the losses of these (`training.catalog.OBJECTIVES`), each at most once.
    objectives: Annotated[tuple[Choice, ...], OneOrMore()] = (Choice("answer"),)
    augmentation: dict[str, Any] = field(default_factory=dict)  # modality -> how far its rows may be changed
    # Rows are mixed with one another, by Beta(mixing, mixing); 0: they are not (`training.mixing`: FuseMix, MixUp);
    # null: 1 where `epochs` is null, too, there are few rows, and all that they have is vectors; else 0
    mixing: float | None = None
    # Pictures have a box of another row's, whose size is drawn by Beta(cutmix, cutmix), 0: none; beside `mixing` each
    # batch has one of the two
    cutmix: float = 0.0
    # Rows are learned also with the small change that makes their answer most wrong (`training.adversaries`); null: not
    adversary: Choice | None = None
    gradient_accumulation: int = 1
    max_grad_norm: float = 1.0
    precision: Literal["float32", "bfloat16"] = "float32"
    gradient_checkpointing: bool = False  # layers are computed twice, so that less has to be remembered
    compile: bool = False  # the language model's layers, by torch.compile: needs a C++ compiler, and a minute at first
    # The language model reads the rows of a batch one after the other in a few sequences, so that little is padding
    # (`training.packing`); null: where it is pretrained and keeps them apart.
    packing: bool | None = None
    seed: int = 0
    workers: int = 0  # processes that make batches
    parallel: int | None = None  # models trained at once, sharing the cores; null: two on a CPU, one on a GPU
    checkpoint_steps: int = 500
    evaluations: int = 5  # validations during training; of a baseline that cannot stop early one
    # End after so many validations in a row without a better `metric`, with the weights of the best one; null: never.
    early_stopping: int | None = None
    metric: str | None = None  # of validation: one of the output's, or loss; null: the output's first
    vocabulary: int = 1024  # tokens, at most; of the tokenizer that `llm: tiny` fits on the training texts
    baseline_epochs: float | None = None  # of each baseline; null: as many as the model, which is fair to them
    report_to: Strings = ()  # passed on to the Trainer: tensorboard, wandb, ...

    def __post_init__(self) -> None:
        for name in ("batch_size", "learning_rate", "gradient_accumulation", "checkpoint_steps"):
            check(getattr(self, name) > 0, name, getattr(self, name), "a positive number")
        object.__setattr__(self, "augmentation", _augmentation(self.augmentation))
        if self.adversary is not None:
            choose(self, "adversary", ADVERSARIES)
        objectives = tuple(OBJECTIVES.choose(objective) for objective in self.objectives)
        object.__setattr__(self, "objectives", objectives)
        kinds = [objective.kind for objective in objectives]
        check(0 < len(kinds) == len(set(kinds)), "objectives", kinds, "at least one, and none twice")
        check(self.parallel is None or self.parallel >= 1, "parallel", self.parallel, "null or at least 1")
        patience = self.early_stopping
        check(patience is None or patience >= 1, "early_stopping", patience, "null or at least 1")
        enough = patience is None or self.evaluations > patience
        check(enough, "evaluations", self.evaluations, f"more than early_stopping ({patience}): it would never stop")
        for name in ("epochs", "baseline_epochs"):
            value = getattr(self, name)
            check(value is None or value > 0, name, value, "null or a positive number")
        check(0 <= (self.mixing or 0) <= 10, "mixing", self.mixing, "null or 0 (none) to 10")
        check(0 <= self.cutmix <= 10, "cutmix", self.cutmix, "0 (none) to 10")
        least = f"at least {SMALLEST_VOCABULARY}: all bytes and 3 special tokens"
        check(self.vocabulary >= SMALLEST_VOCABULARY, "vocabulary", self.vocabulary, least)
        for name in ("warmup", "label_smoothing"):
            check(0 <= getattr(self, name) < 1, name, getattr(self, name), "0 up to (not including) 1")


def located(training: TrainingSettings, locate: Callable[[str], str]) -> TrainingSettings:
    """The settings with files named by where they lie."""
    text = training.augmentation.get("text")
    if text is None or text.synonyms is None:
        return training
    found = dataclasses.replace(text, synonyms=locate(text.synonyms))
    return dataclasses.replace(training, augmentation={**training.augmentation, "text": found})


def for_rows(
    training: TrainingSettings, model: ModelSettings, rows: int, validation: int = 0, mixable: bool = False
) -> TrainingSettings:
    """The settings with a number of epochs, for a training on that many rows.

    Few rows are seen often, mixed with one another where they are `mixable`; and, where there are `validation` rows,
    until their loss becomes no better.
    """
    if training.epochs is not None:
        return training
    encoders = [e for e in model.encoders.values() if isinstance(e, Choice) and e.kind in PRETRAINED_ENCODERS]
    steps = math.ceil(rows / training.batch_size / training.gradient_accumulation)  # of an epoch
    enough = math.ceil(_ENOUGH_STEPS / max(1, steps))
    # A step of what is pretrained takes long, and starts from what is known already.
    if encoders or model.llm.model != TINY or enough <= _EPOCHS:
        return dataclasses.replace(training, epochs=_EPOCHS)
    changes: dict[str, Any] = {"epochs": min(_MOST_EPOCHS, enough)}
    if mixable and training.mixing is None:
        changes["mixing"] = 1.0
    if validation and training.evaluations and training.early_stopping is None:
        often = max(_EVALUATIONS, training.evaluations)
        changes |= {"evaluations": often, "early_stopping": _PATIENCE, "metric": training.metric or "loss"}
    return dataclasses.replace(training, **changes)


def _augmentation(sections: Mapping[str, Any]) -> dict[str, Any]:
    """Modality -> the dataclass that its class names `Augmentation`."""
    classes = {name: MODALITIES.load(name) for name in MODALITIES.names()}
    kinds = {name: cls.Augmentation for name, cls in classes.items() if hasattr(cls, "Augmentation")}
    settings = {}
    for name, section in sections.items():
        check(name in kinds, "augmentation", name, f"modalities that can be augmented ({', '.join(kinds)})")
        if section is not None:
            try:
                values = to_dict(section) if isinstance(section, kinds[name]) else section
                settings[name] = validated(kinds[name], values)
            except ValueError as error:
                raise ValueError(f"augmentation.{name}: {error}") from None
    return settings


# Settings that change how a training is run or reported, and not what comes out.
_NEUTRAL = ("workers", "parallel", "checkpoint_steps", "report_to", "baseline_epochs")


def decisive(training: TrainingSettings) -> dict[str, Any]:
    """Those settings, as plain values, that decide the weights."""
    plain = {name: value for name, value in to_dict(training).items() if name not in _NEUTRAL}
    return {name: value for name, value in plain.items() if value or name not in ("adversary", "cutmix")}


@dataclass(frozen=True, kw_only=True)
class PromotionSettings:
    __pydantic_config__ = FORBID_EXTRA
    metric: str | None = None  # one of the output's (`training.outputs`); null: its first, accuracy of text and class
    # `majority`: the one answer that is best whatever the inputs, from the training labels
    must_beat: Annotated[tuple[Literal["champion", "best_single_modality", "majority"], ...], OneOrMore()] = (
        "champion",
        "best_single_modality",
        "majority",
    )
    confidence: float = 0.95  # of the one-sided paired bootstrap
    margin: float = 0.0  # 0: strictly better; above: may be worse than the champion by less than this
    # A model whose answers are no worse with the soft tokens of another row: `block` ends the run before the gate.
    unused_fusion: Literal["warn", "block"] = "warn"
    # What the metric must be, at least (errors: at most), in every slice of 20 test rows or more; null: anything.
    worst_slice: float | None = None

    def __post_init__(self) -> None:
        check(0.5 <= self.confidence < 1, "confidence", self.confidence, "0.5 up to (not including) 1")
        check(self.margin >= 0, "margin", self.margin, "0 or more, in the units of the metric")
