"""The gate's judgement: on the same rows, is the challenger better than the champion, than the best single modality and
than the one answer that is best whatever the inputs?"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from training.bootstrap import compare, p_words
from training.evaluate import SLICE_ROWS, answers_by_sample
from training.fusion_check import FusionCheck
from training.metrics import Metric
from training.outputs.base import Output
from training.records import Answer, Comparison, Means, Standing
from training.settings import PromotionSettings

_SHOWN = 30  # characters of the majority answer


@dataclass(frozen=True)
class Decision:
    promote: bool
    reasons: list[str]  # sentences for a person, one per comparison
    standings: list[Standing] = field(default_factory=list)  # beside champion, the best single modality, majority


@dataclass(frozen=True)
class Rival:
    """What the challenger must beat."""

    name: str  # as sentences call it
    standing: Standing
    rule: PromotionSettings


def decide(
    challenger: pa.Table,
    champion: pa.Table | None,
    singles: Mapping[str, pa.Table],
    majority: Any,
    settings: PromotionSettings,
    output: Output,
    fusion: FusionCheck | None = None,
    slices: Mapping[str, Mapping[str, str]] | None = None,
) -> Decision:
    """Whether the challenger becomes champion.

    Args:
        challenger, champion: predictions (`training.schema.predictions_schema`) on the same test rows; None: no
            champion yet.
        singles: predictions of the baselines that see one modality, by modality. A row that lacks the modality may be
            absent there. A modality that no test row has is not compared.
        majority: `Output.constant` of the training labels: a rival of its own, and what another rival answers where it
            has no answer. What the challenger does not answer counts as it is.
        output: what the models answer with; `settings.metric` is one of its metrics.
        fusion: of the challenger; None: not measured.
        slices: of the test rows (`training.evaluate.slices`), for `settings.worst_slice`.

    Raises:
        ValueError: they are not on the same rows, a row stands twice, or there is none.
    """
    metric = output.metric(settings.metric)
    strict = replace(settings, margin=0.0)  # being worse than a champion may be allowed, than these never
    beside = standings(challenger, singles, majority, strict, output)
    rivals, reasons = [], []
    if champion is not None and "champion" in settings.must_beat:
        if unscored := set(_samples(challenger)).symmetric_difference(_samples(champion)):
            raise ValueError(
                f"challenger and the champion were not scored on the same test rows ({len(unscored)} stand on one side "
                "only): score both on the present snapshot"
            )
        (standing,) = standings(challenger, {"champion": champion}, majority, settings, output)[1:]
        rivals.append(Rival("the champion", standing, settings))
    if "best_single_modality" in settings.must_beat:
        reasons += [f"{s.name} alone was not compared: no test row has {s.name}" for s in beside[1:] if not s.own_rows]
        if (single := best(beside[1:])) is not None:
            rivals.append(Rival(f"the best single modality ({single.name})", single, strict))
    if "majority" in settings.must_beat:
        rivals.append(Rival(f"the majority answer{_shown(majority)}", beside[0], strict))
    reasons += [judgement(rival.standing, rival.name, rival.rule, metric) for rival in rivals]
    promote = all(rival.standing.all.better for rival in rivals)
    if not rivals:
        reasons.append(f"nothing was compared: promotion.must_beat is {', '.join(settings.must_beat) or 'empty'}")
    if champion is None:
        reasons.append("there was no champion before")
    if fusion is not None and not fusion.passed and settings.unused_fusion == "block":
        promote = False
        reasons.append(f"{fusion.words} (promotion.unused_fusion is block)")
    if settings.worst_slice is not None:
        passed, reason = _worst_slice(challenger, slices or {}, settings.worst_slice, metric)
        promote = promote and passed
        reasons.append(reason)
    return Decision(promote, reasons, [r.standing for r in rivals])


def _worst_slice(
    challenger: pa.Table, slices: Mapping[str, Mapping[str, str]], asked: float, metric: Metric
) -> tuple[bool, str]:
    """Whether every slice reaches what is asked, and the worst one in words. A slice of few rows is chance, and out."""
    told = zip(_samples(challenger), challenger["label"].to_pylist(), strict=True)
    labels = {sample: label for sample, label in told if metric.rows([label])}
    answers, parts = answers_by_sample(challenger), defaultdict(list)
    for column, values in slices.items():
        for sample in labels.keys() & values.keys():
            parts[f"{column}={values[sample]}"].append(sample)
    measured = {
        name: (metric.value([labels[s] for s in samples], [answers[s] for s in samples]), len(samples))
        for name, samples in sorted(parts.items())
        if len(samples) >= SLICE_ROWS
    }
    sign = 1 if metric.higher_is_better else -1
    figures = {name: (value, rows) for name, (value, rows) in measured.items() if value is not None}
    if not figures:
        return True, f"promotion.worst_slice was not asked for: no slice of the test rows has {SLICE_ROWS} rows"
    name, (value, rows) = min(figures.items(), key=lambda part: sign * part[1][0])
    passed = sign * value >= sign * asked
    said, least = "is within" if passed else "is not within", "at least" if sign > 0 else "at most"
    return passed, (
        f"the worst slice {said} promotion.worst_slice ({least} {asked:g}): {name} has {metric.words} {value:.4f} "
        f"(n = {rows:,}; {len(figures):,} slices)"
    )


def standings(
    model: pa.Table, rivals: Mapping[str, pa.Table], majority: Any, rule: PromotionSettings, output: Output
) -> list[Standing]:
    """The model beside the majority answer and then each rival, by the metric of `rule`, on the model's rows.

    Args: see `decide`; labels are the model's, since a rival's output may read them in another way, or some not at all.

    Raises:
        ValueError: there are no rows, or a rival has others.
    """
    metric = output.metric(rule.metric)
    labels = dict(zip(_samples(model), model["label"].to_pylist(), strict=True))
    ours = answers_by_sample(model)
    if not ours:
        raise ValueError("there are no test rows to judge on, expected at least one: look at align.split")
    judged = _Judged(labels, ours, Answer(majority), rule, metric)
    lines = [judged.beside("majority", dict.fromkeys(labels, Answer(majority)))]
    for name, table in rivals.items():
        if unknown := set(_samples(table)) - labels.keys():
            raise ValueError(
                f"model and {name} were not scored on the same test rows ({len(unknown)} stand on one side only): "
                "score both on the present snapshot"
            )
        lines.append(judged.beside(name, answers_by_sample(table.filter(pc.is_valid(table["prediction"])))))
    return lines


@dataclass(frozen=True)
class _Judged:
    """The model on its rows."""

    labels: Mapping[str, Any]  # by sample
    answers: Mapping[str, Answer]
    usual: Answer  # the majority's
    rule: PromotionSettings
    metric: Metric

    def beside(self, name: str, theirs: Mapping[str, Answer]) -> Standing:
        """Beside a rival, with its answers where it has some."""
        labels, ours = list(self.labels.values()), [self.answers[sample] for sample in self.labels]
        filled = [theirs.get(sample, self.usual) for sample in self.labels]
        on_all = compare(self.metric, labels, ours, filled, self.rule.confidence, self.rule.margin)
        if not theirs:
            return Standing(name=name, all=on_all, answered=None)
        own = [self.labels[sample] for sample in theirs]
        a, b = (self.metric.value(own, [side[sample] for sample in theirs]) for side in (self.answers, theirs))
        # What cannot be said of those rows alone (they have one label, say) is not said.
        rows = len(self.metric.rows(own))
        answered = None if a is None or b is None else Means(a=a, b=b, rows=rows)
        return Standing(name=name, all=on_all, answered=answered, own_rows=rows)


def best(beside: Iterable[Standing]) -> Standing | None:
    """The strongest rival on all rows, of those that answer any."""
    return min((s for s in beside if s.own_rows), key=lambda standing: standing.all.difference, default=None)


def _samples(table: pa.Table) -> list[str]:
    return table["sample_id"].to_pylist()


def judgement(standing: Standing, rival: str, rule: PromotionSettings, metric: Metric) -> str:
    """What came of a comparison, as a sentence with its figures, their rows and the rule."""
    figures = standing.all
    within = f", margin {rule.margin:g}" if rule.margin else ""
    gain = "difference" if metric.higher_is_better else "less by"
    sentence = (
        f"{_verdict(figures, rule)} {rival}: {metric.words} {figures.a:.4f} against {figures.b:.4f} on the same "
        f"{figures.rows:,} test rows, {gain} {figures.difference:+.4f} [{figures.low:+.4f}, {figures.high:+.4f}] "
        f"({rule.confidence:.0%} one-sided paired bootstrap, {p_words(figures.p)}{within})"
    )
    return "; ".join([sentence, *_unanswered(standing), *_too_few(figures, rule)])


def _verdict(comparison: Comparison, rule: PromotionSettings) -> str:
    if rule.margin:
        return "not worse than" if comparison.better else "not shown to be as good as"
    if comparison.better:
        return "better than"
    return "worse than" if comparison.difference < 0 else "not shown to be better than"


def _unanswered(standing: Standing) -> list[str]:
    """The other reading, where the rival does not answer all rows."""
    if standing.answered is None or (without := standing.all.rows - standing.answered.rows) == 0:
        return []
    own = standing.answered
    return [
        f"on {without:,} of them it has no answer, and the majority's counts; on the other {own.rows:,} it is "
        f"{own.a:.4f} against {own.b:.4f}"
    ]


def _too_few(comparison: Comparison, rule: PromotionSettings) -> list[str]:
    """Where so few rows could not have shown it."""
    if comparison.better or comparison.difference < 0:
        return []
    needed, rows = comparison.needed, f"the two differ on {comparison.differ:,} rows"
    if rule.margin:
        few = f"with a margin of {rule.margin:g} at least {needed:,} rows are needed"
        return [few] if comparison.rows < needed else []
    return [f"{rows}, and at least {needed} must be better, and none worse"] if comparison.differ < needed else []


def _shown(answer: Any) -> str:
    """An answer that is a short text, a number or a list of names, in brackets."""
    answer = ", ".join(map(str, answer)) or "none" if isinstance(answer, list) else answer
    if not isinstance(answer, str | int | float):
        return ""
    words = f"{answer:.4g}" if isinstance(answer, float) else " ".join(str(answer).split())
    return f" ({words if len(words) <= _SHOWN else words[: _SHOWN - 1] + '…'})"
