"""How much each input adds: Shapley values, exactly (Shapley 1953).

phi_i = sum over S without i of |S|! (n - |S| - 1)! / n! (v(S + i) - v(S)): what i adds to those before it, on average
over all orders in which the inputs can come. They add up to v(all) - v(none).
"""

import math
from collections.abc import Collection, Mapping


def shapley_values(worth: Mapping[frozenset[str], float]) -> dict[str, float]:
    """Of each input.

    Args:
        worth: v of every set of inputs, the empty one included.
    """
    everyone = max(worth, key=len)
    return {one: _value(one, everyone - {one}, worth) for one in sorted(everyone)}


def _value(one: str, others: Collection[str], worth: Mapping[frozenset[str], float]) -> float:
    count, total = len(others) + 1, 0.0
    for before, value in worth.items():
        if one not in before:
            orders = math.factorial(len(before)) * math.factorial(count - len(before) - 1) / math.factorial(count)
            total += orders * (worth[before | {one}] - value)
    return total
