"""How much each input adds: Shapley values, exactly (Shapley 1953).

phi_i = sum over S without i of |S|! (n - |S| - 1)! / n! (v(S + i) - v(S)): what i adds to those before it, on average
over all orders in which the inputs can come. They add up to v(all) - v(none).
"""

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from itertools import combinations
from typing import Any

from training.records import Answer, Answered

Contributions = Mapping[str, Mapping[str, float]]  # sample id -> input -> what it adds


def shapley_values(worth: Mapping[frozenset[str], float]) -> dict[str, float]:
    """Of each input.

    Args:
        worth: v of every set of inputs, the empty one included.
    """
    everyone = max(worth, key=len)
    return {one: _value(one, everyone - {one}, worth) for one in sorted(everyone)}


def answer_contributions(answered: Sequence[Answered], labels: Sequence[Any], inputs: Sequence[str]) -> Contributions:
    """What each input adds to the probability of the answer that a sample is given from all of them, sample by sample:
    from the share of that answer among the labels of training, which is all that is known without any input.

    Only of answers whose probability every subset of the inputs tells, as those of a class do; a text is known to the
    subsets that have written it, and no other.

    Args:
        answered: each sample with each subset of the inputs that has one of its own; nothing is asked anew.
        labels: of the training rows.
    """
    usual = Counter(label for label in labels if isinstance(label, str))
    told: dict[str, dict[frozenset[str], Answer]] = {}
    for one in answered:
        told.setdefault(one.sample, {})[frozenset(one.subset.split("+"))] = one.answer
    found = {}
    sets = [frozenset(some) for size in range(len(inputs) + 1) for some in combinations(inputs, size)]
    for sample, answers in told.items():
        given_all = answers.get(frozenset(inputs))
        if given_all is not None and isinstance(said := given_all.prediction, str) and usual:
            known = {subset: _chance(answer, said) for subset, answer in answers.items()}
            worth = {some: known.get(some, usual[said] / usual.total()) for some in sets}
            values = {some: value for some, value in worth.items() if value is not None}
            if len(values) == len(sets):
                found[sample] = shapley_values(values)
    return found


def _chance(answer: Answer, said: str) -> float | None:
    """How probable an answer takes what another one said to be; None: it does not say."""
    return answer.probability if answer.prediction == said else dict(answer.best).get(said)


def _value(one: str, others: Collection[str], worth: Mapping[frozenset[str], float]) -> float:
    count, total = len(others) + 1, 0.0
    for before, value in worth.items():
        if one not in before:
            orders = math.factorial(len(before)) * math.factorial(count - len(before) - 1) / math.factorial(count)
            total += orders * (worth[before | {one}] - value)
    return total
