"""What crosses from one package or process to another, as frozen dataclasses that JSON can carry there and back.

`to_json` gives what users see (`triptych run --json`, report.json, evaluation.json); `from_json` reads it again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

# How answers are given, unless one says otherwise: see `Answer.to_json`.
ANSWERS = {"abstain_below": 0.0, "best": 5}
_DIGITS = 4  # of a probability


@dataclass(frozen=True)
class Answer:
    """What a model says of a row."""

    prediction: Any  # in the output's type; None: none
    probability: float | None = None  # that it is right, calibrated on validation rows; None: not known
    best: tuple[tuple[str, float], ...] = ()  # the most probable answers and their probabilities, the best first
    parts: Mapping[str, "Answer"] = field(default_factory=dict)  # of an output of several: each one's, by name

    def part(self, name: str) -> "Answer":
        """Of several answers, the one of that name, though its probability be not known."""
        return self.parts.get(name) or Answer((self.prediction or {}).get(name))

    def best_rows(self, most: int | None = None) -> list[dict[str, Any]]:
        """`best` as tables and JSON hold it (`training.schema.BEST`)."""
        return [{"answer": answer, "probability": chance} for answer, chance in self.best[:most]]

    def part_rows(self) -> list[dict[str, Any]]:
        """`parts` as tables hold them (`training.schema.PARTS`): what each prediction is stands in the whole."""
        named = self.parts.items()
        return [{"output": n, "probability": part.probability, "best": part.best_rows()} for n, part in named]

    def to_json(self, abstain_below: float = 0.0, best: int = 5) -> dict[str, Any]:
        """As users get it; as many digits as batches of other rows leave alone.

        Args:
            abstain_below: of a probability below it the prediction is null, and `abstained` true. Of several answers
                each has its own, in `outputs`, and is withheld by itself; the whole has abstained where one has.
            best: how many of these.
        """
        if self.parts:
            return self._several(abstain_below, best)
        abstained = self.probability is not None and self.probability < abstain_below
        shown = [{**row, "probability": round(row["probability"], _DIGITS)} for row in self.best_rows(best)]
        return {
            "prediction": None if abstained else self.prediction,
            "probability": None if self.probability is None else round(self.probability, _DIGITS),
            "abstained": abstained,
            "best": shown,
        }

    def _several(self, abstain_below: float, best: int) -> dict[str, Any]:
        whole = Answer(None, self.probability).to_json()
        outputs = {name: part.to_json(abstain_below, best) for name, part in self.parts.items()}
        whole["prediction"] = {name: part["prediction"] for name, part in outputs.items()}
        whole["abstained"] = any(part["abstained"] for part in outputs.values())
        return {**whole, "outputs": outputs}

    @classmethod
    def of(cls, answer: Any) -> "Answer":
        """A prediction as an answer; an answer stays."""
        return answer if isinstance(answer, Answer) else cls(answer)

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "Answer":
        """Of a row of predictions; those of older models have no probabilities."""
        best = tuple((entry["answer"], entry["probability"]) for entry in row.get("best") or ())
        told, said = row.get("parts") or (), row["prediction"] or {}
        parts = {part["output"]: cls.from_row({**part, "prediction": said.get(part["output"])}) for part in told}
        return cls(row["prediction"], row.get("probability"), best, parts)


@dataclass(frozen=True)
class Answered:
    """What a model says of a sample when it is shown some of its inputs."""

    sample: str  # its id
    subset: str  # the modalities that could be shown (`training.schema.subset_name`), of which a sample may lack some
    label: Any  # None: it has none
    answer: Answer


@dataclass(frozen=True)
class Figure:
    """A measured value and its 95 % interval; None where there was nothing to measure."""

    value: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class EvaluationRow:
    """What a model is worth on some rows when it is shown some of its inputs."""

    inputs: str  # all that the model reads: "text+image"
    subset: str  # those that it was shown
    slice: str | None  # the rows, as "column=value"; None: all
    n: int  # rows, which have at least one of those inputs
    metrics: Mapping[str, Figure]  # the output's first metric is the first here
    filled: Figure = Figure()  # the first metric on all rows: with the majority answer where they have none of them
    # Where all inputs are shown: what each of them adds to the first metric, from the majority answer on, as Shapley
    # values (`training.shapley`); of rows that have none of a subset the majority answer counts.
    contributions: Mapping[str, float] = field(default_factory=dict)

    @property
    def main(self) -> Figure:
        """Of the output's first metric."""
        return next(iter(self.metrics.values()))

    @property
    def is_full(self) -> bool:
        """Whether the model was shown all its inputs, on all rows."""
        return self.subset == self.inputs and self.slice is None

    def figures(self) -> dict[str, Any]:
        """n, and each metric as X, X_low and X_high; the interval of the first is low and high."""
        figures: dict[str, Any] = {"n": self.n}
        for number, (name, figure) in enumerate(self.metrics.items()):
            prefix = f"{name}_" if number else ""
            figures |= {name: figure.value, f"{prefix}low": figure.low, f"{prefix}high": figure.high}
        return figures

    def to_json(self) -> dict[str, Any]:
        keys = {"inputs": self.inputs, "subset": self.subset, "slice": self.slice}
        more = {"filled": asdict(self.filled), "contributions": dict(self.contributions)}
        return {**keys, **more, **self.figures()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "EvaluationRow":
        keys = {name: values[name] for name in ("inputs", "subset", "slice", "n")}
        others = (*keys, "filled", "contributions", "low", "high")
        names = [name for name in values if name not in others and not name.endswith(("_low", "_high"))]
        metrics = {}
        for number, name in enumerate(names):
            prefix = f"{name}_" if number else ""
            metrics[name] = Figure(values[name], values[f"{prefix}low"], values[f"{prefix}high"])
        contributions = values.get("contributions", {})  # an older model's says none
        return cls(**keys, metrics=metrics, filled=Figure(**values["filled"]), contributions=contributions)


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """What a model is worth where it only gives answers that are probable enough."""

    metric: str  # its name
    least: float  # probability
    rows: int  # that are answered then ...
    of: int  # ... of so many
    value: float | None  # the metric on those; None: there are none, or it cannot be said of them

    @property
    def share(self) -> float:
        return self.rows / self.of if self.of else 0.0

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "share": self.share}


@dataclass(frozen=True)
class CalibrationBin:
    """Answers that are said to be about as probable."""

    rows: int
    claimed: float  # mean of their probabilities
    right: Figure  # share of them that are right


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Whether answers are as often right as they say."""

    metric: str  # name of the calibration error
    slice: str | None  # the rows, as "column=value"; None: all
    rows: int
    error: Figure
    bins: Sequence[CalibrationBin]  # that have rows, the least probable first

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Calibration":
        bins = [CalibrationBin(b["rows"], b["claimed"], Figure(**b["right"])) for b in values["bins"]]
        return cls(**{**values, "error": Figure(**values["error"]), "bins": bins})


@dataclass(frozen=True)
class GroupFigure:
    """What a model is worth to one group."""

    group: str
    rows: int
    figure: Figure
    rest: Figure  # how much more that is than what it is worth to all others
    counted: bool  # whether it has rows enough to be compared


@dataclass(frozen=True, kw_only=True)
class Fairness:
    """How what a model is worth differs between the groups of a column."""

    column: str
    metric: str  # its name
    rows: int
    groups: Sequence[GroupFigure]
    largest: str | None = None  # the group whose figure is largest ...
    least: str | None = None  # ... and that whose is least, of those that have rows enough
    gap: Figure = Figure()  # between these two
    note: str | None = None  # why there is none

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Fairness":
        groups = [
            GroupFigure(g["group"], g["rows"], Figure(**g["figure"]), Figure(**g["rest"]), g["counted"])
            for g in values["groups"]
        ]
        return cls(**{**values, "groups": groups, "gap": Figure(**values["gap"])})


@dataclass(frozen=True, kw_only=True)
class NoiseCurve:
    """What a model is worth as one modality gets noisier."""

    modality: str
    metric: str  # its name
    rows: int  # that have the modality
    noise: str  # what the levels are, in words
    levels: Sequence[float]  # the worst last
    figures: Sequence[Figure]  # without noise, and of each level

    @property
    def area(self) -> float | None:
        """Under the curve, over levels that lie evenly from 0 to 1 (trapezoids): the figure without noise where noise
        changes nothing. None: some figure is not known."""
        values = [one.value for one in self.figures if one.value is not None]
        if len(values) < max(2, len(self.figures)):
            return None
        return (sum(values) - (values[0] + values[-1]) / 2) / (len(values) - 1)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "area": self.area}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "NoiseCurve":
        plain = {name: value for name, value in values.items() if name != "area"}
        return cls(**{**plain, "figures": [Figure(**one) for one in values["figures"]]})


@dataclass(frozen=True, kw_only=True)
class CriticFigures:
    """How often a critic that is fitted afterwards tells a column that was to be forgotten: `training.fresh_critic`."""

    column: str
    on: str  # what it reads: fused, or a modality
    rows: int  # that it is asked of
    split: str  # whose rows these are: validation; or train: some of these, which it was not fitted on
    before: float  # of the model before its first step
    after: float
    majority: float  # who always says the most frequent value

    @property
    def words(self) -> str:
        rows = "validation rows" if self.split == "validation" else "training rows kept apart"
        return (
            f"{self.column} can be told from {self.on} in {self.after:.3f}, {self.before:.3f} before training; "
            f"{self.majority:.3f} by the most frequent one (a fresh critic, n = {self.rows:,} {rows})"
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class TrainingReport:
    """What a training came to, once all of it is safe in MLflow (there as report.json)."""

    name: str  # as `training.spec.RunSpec`
    mlflow_run_id: str
    version: str | None  # in the registry; None for a baseline, which is not registered
    dataset_fingerprint: str
    training_fingerprint: str
    metrics: Mapping[str, float | None]  # on the test rows, all inputs given; None: no test row has any of them
    subsets: Mapping[str, float | None]  # the output's first metric by the inputs given, on the rows that have any
    rows: Mapping[str, int]  # how many those are, by the same names
    filled: Mapping[str, float | None]  # on all test rows: with the majority answer where they have none
    test_rows: int  # all of them
    seconds: Mapping[str, float]  # of train, evaluate, log
    critic: CriticFigures | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "TrainingReport":
        critic = values.get("critic")
        return cls(**{**values, "critic": critic and CriticFigures(**critic)})


@dataclass(frozen=True, kw_only=True)
class CodecReport:
    """What the training of a codec came to, once it is safe in MLflow (there as codec.json)."""

    name: str  # image_codec, ...
    fingerprint: str
    mlflow_run_id: str
    contents: int  # that it learned from
    codes: int  # there are
    length: float  # codes of a content of the test rows, in the mean
    likeness: float  # of those to what it makes of them again (`training.likeness`): 1 is the same
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class PretrainingReport:
    """What encoders learned without labels, once they are safe in MLflow (there as pretraining.json)."""

    fingerprint: str
    mlflow_run_id: str
    rows: int  # that they learned from
    unlabelled: int  # of these
    left_out: int  # without a label, since they have to do with rows that models are judged by
    before: Mapping[str, float]  # losses of the validation rows by name; empty: there are none
    after: Mapping[str, float]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class VariantReport:
    """What a variant of a version is (or the version as it is), once it is safe in MLflow (there as variant.json)."""

    name: str  # as `training.spec.VariantSpec`
    of: str  # the version
    fingerprint: str
    mlflow_run_id: str
    size: int  # bytes of all files of its bundle
    milliseconds: float  # from the features of one row to its answer, the median ...
    milliseconds_p95: float  # ... and the 95th percentile
    rows_per_second: float  # in batches
    metrics: Mapping[str, float | None]  # on the test rows, all inputs given (`EvaluationRow.figures`)
    device: str  # where that was measured, in words
    seconds: float  # that all took

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A trial of a search for settings."""

    number: int  # from 1
    state: str  # complete, pruned, failed
    values: Mapping[str, Any]  # dotted key of a setting -> what it was
    value: float | None  # the metric on the validation rows; of a pruned one at its last validation
    seconds: float
    said: str  # why it failed, or which other trial it is the same as

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Trial":
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class SiloReport:
    """What a silo did for a model that silos train."""

    silo: str
    mlflow_run_id: str  # at the silo
    rows: int  # training rows
    rounds: int  # that it trained in
    epsilon: float | None  # spent on its rows, all trainings together; None: without differential privacy
    ended: str  # why it ended, in words
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class TuningReport:
    """What a search for settings came to, once it is safe in MLflow (there as tuning.json)."""

    fingerprint: str  # of the study
    mlflow_run_id: str  # the run above those of the trials
    metric: str
    trials: Sequence[Trial]
    best: int  # the number of the best trial
    settings: Mapping[str, Mapping[str, Any]]  # section of the project file -> its keys that make the best trial
    higher_is_better: bool  # of the metric
    importance: Mapping[str, float]  # of each setting that was tried, for the metric: together 1; {}: not known

    @property
    def best_trial(self) -> Trial:
        return self.trials[self.best - 1]

    @property
    def ranked(self) -> list[Trial]:
        """The best first: those that came to their end, then those that were pruned, then those that failed."""
        sign = -1 if self.higher_is_better else 1
        states = ("complete", "pruned", "failed")
        return sorted(self.trials, key=lambda trial: (states.index(trial.state), sign * (trial.value or 0)))

    @property
    def seconds(self) -> float:
        return sum(trial.seconds for trial in self.trials)

    @property
    def words(self) -> str:
        """20 trials (3 pruned, 1 failed): best validation accuracy 0.842 by trial 7"""
        counts = {state: sum(trial.state == state for trial in self.trials) for state in ("pruned", "failed")}
        beside = ", ".join(f"{n} {state}" for state, n in counts.items() if n)
        best = f"best validation {self.metric.replace('_', ' ')} {self.best_trial.value:.4g} by trial {self.best}"
        return f"{len(self.trials)} trials{beside and f' ({beside})'}: {best}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "TuningReport":
        return cls(**{**values, "trials": [Trial.from_json(trial) for trial in values["trials"]]})


@dataclass(frozen=True, kw_only=True)
class Means:
    """Mean score of a and of b on the same rows."""

    a: float
    b: float
    rows: int


@dataclass(frozen=True, kw_only=True)
class Comparison(Means):
    """By how much a is better than b."""

    difference: float  # above 0 where a is better, whichever way the metric goes
    low: float  # the difference is above it with `confidence` (one-sided) ...
    high: float  # ... and below this with `confidence`
    p: float  # chance that a is not better (with a margin: that it is worse by the margin or more)
    better: bool
    differ: int  # rows on which they do not score the same
    needed: int  # so many must differ before a can be shown to be better; with a margin, so many rows must there be


@dataclass(frozen=True, kw_only=True)
class Standing:
    """The model (a) beside a rival (b), on the same test rows."""

    name: str  # champion, majority, or a baseline's
    all: Comparison  # on all rows; where the rival has no answer, it gives the majority answer of training
    answered: Means | None  # on the rows that it answers itself; None: there are none, or nothing can be said of them
    own_rows: int = 0  # how many those are

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Standing":
        answered = values["answered"] and Means(**values["answered"])
        rows = values.get("own_rows", answered.rows if answered else 0)
        return cls(name=values["name"], all=Comparison(**values["all"]), answered=answered, own_rows=rows)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the gate decided about a version, or had decided before."""

    version: int
    champion_before: str  # the version that answered until then, or "none"
    champion: str  # the one that answers now, or "none"
    aliases: list[str] = field(default_factory=list)  # of `version`
    reasons: list[str] = field(default_factory=list)  # sentences for a person
    standings: list[Standing] = field(default_factory=list)  # beside each that it had to beat
    test_looks: int = 0  # how many candidates were judged on this test snapshot: the more, the less it proves

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Verdict":
        return cls(**{**values, "standings": [Standing.from_json(standing) for standing in values["standings"]]})
