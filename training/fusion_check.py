"""Whether a model listens to what was fused: its answers, and those with the soft tokens of another row."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from training.bootstrap import compare, p_words
from training.metrics import Metric


@dataclass(frozen=True)
class FusionCheck:
    """Whether the answers depend on what was fused."""

    passed: bool
    words: str  # for a person


def shuffled_figures(metric: Metric, labels: Sequence[Any], answers: Sequence[Any], others: Sequence[Any]) -> Any:
    """What `fusion_check` reads: how the answers of the same rows change with the soft tokens of another row each.

    Returns:
        shuffled_X, the metric X of `others`; shuffled_p, the chance that `answers` are not better; shuffled_same, how
        many did not change.
    """
    compared = compare(metric, labels, answers, others)
    same = sum(answer == other for answer, other in zip(answers, others, strict=True))
    return {f"shuffled_{metric.name}": compared.b, "shuffled_p": compared.p, "shuffled_same": same}


def fusion_check(figures: Mapping[str, float | None], metric: str, confidence: float) -> FusionCheck | None:
    """Whether a model's answers get worse with the soft tokens of another row (`shuffled_figures`).

    Args:
        figures: of the test rows with all inputs given, the metric's and n among them.
    """
    value, other, p = (figures.get(name) for name in (metric, f"shuffled_{metric}", "shuffled_p"))
    if value is None or other is None or p is None:
        return None
    n, same, name = int(figures["n"] or 0), int(figures["shuffled_same"] or 0), metric.replace("_", " ")
    passed = p < 1 - confidence
    return FusionCheck(
        passed,
        f"the model {'listens' if passed else 'is not shown to listen'} to what is fused: on the same {n:,} test rows "
        f"{name} is {value:.4f}, and {other:.4f} with the soft tokens of another row ({p_words(p)}; {same:,} answers "
        "stay the same)",
    )
