"""Metrics of answers that are an order: labels and predictions list items, the best first.

What a list lacks comes after all that it names, in no order.
"""

import math
from collections.abc import Sequence
from itertools import combinations

from training.label_metrics import CalibrationError
from training.metrics import Metric


def kendall_tau(label: Sequence[str], prediction: Sequence[str] | None) -> float:
    """Of the pairs that the label orders, the share that stands the same way less the share that stands the other way
    (Kendall 1938): from -1 to 1; a pair that the prediction leaves open counts for neither."""
    if prediction is None:
        return -1.0
    place = {item: n for n, item in enumerate(prediction)}
    others = [item for item in prediction if item not in label]
    pairs = [*combinations(label, 2), *((item, other) for item in label for other in others)]
    last = len(prediction)
    gaps = [place.get(after, last) - place.get(before, last) for before, after in pairs]
    return sum((gap > 0) - (gap < 0) for gap in gaps) / len(gaps) if gaps else 1.0


def ndcg(label: Sequence[str], prediction: Sequence[str] | None) -> float:
    """Discounted cumulative gain over the best there can be (Järvelin and Kekäläinen 2002): the label's last item gains
    1, the one before it 2, and so on; each over log2 of its place in the prediction, from 2."""
    gains = {item: len(label) - n for n, item in enumerate(label)}
    reached = sum(gains.get(item, 0) / math.log2(n + 2) for n, item in enumerate(prediction or ()))
    return reached / sum(gain / math.log2(n + 2) for n, gain in enumerate(gains.values()))


def first(label: Sequence[str], prediction: Sequence[str] | None) -> bool:
    """The label's best item is the prediction's."""
    return bool(prediction) and prediction is not None and label[0] == prediction[0]


KENDALL_TAU = Metric("kendall_tau", kendall_tau)
NDCG = Metric("ndcg", ndcg)
TOP_1 = Metric("top_1", first)
ECE = Metric("ece", over=CalibrationError(first), higher_is_better=False, of_probabilities=True)
