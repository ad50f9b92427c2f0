"""Which tensors of a model silos share, and to which part of it each belongs."""

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from training.combinations.base import Combination
from training.federation.board import Update
from training.federation.wire import Learned, RefusedError

if TYPE_CHECKING:
    from training.model import FusionModel

ALL = ""  # the part that every row trains
_OF_MODALITY = ("encoders", "projectors", "places")  # what the model has of each modality
_MOST_ROWS = 2**40


def part_of(name: str) -> str:
    """The modality that a tensor is of, or ALL. Only silos that have rows with a modality train its part, so that the
    others do not dilute it."""
    module, _, rest = name.partition(".")
    return rest.partition(".")[0] if module in _OF_MODALITY else ALL


def shared_tensors(network: "FusionModel") -> dict[str, Any]:
    """What is trained, and the statistics beside it, as they lie in the model; tied weights once."""
    learned = {name: p.data for name, p in network.named_parameters() if p.requires_grad}
    frozen = {name for name, _ in network.named_parameters(remove_duplicate=False)}
    state = {name: tensor for name, tensor in network.state_dict().items() if name not in frozen}
    return learned | {name: tensor for name, tensor in state.items() if tensor.is_floating_point()}


def learned_names(network: "FusionModel") -> frozenset[str]:
    """Names of the shared tensors that gradients move."""
    return frozenset(name for name, p in network.named_parameters() if p.requires_grad)


def arrays(tensors: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Copies, in float32."""
    return {name: tensor.detach().float().cpu().numpy().copy() for name, tensor in tensors.items()}


def put(network: "FusionModel", weights: Mapping[str, np.ndarray]) -> None:
    """Gives the model these weights."""
    import torch

    shared = shared_tensors(network)
    with torch.no_grad():
        for name, array in weights.items():
            shared[name].copy_(torch.from_numpy(array))


def check_update(weights: Mapping[str, np.ndarray], changes: Mapping[str, np.ndarray], learned: Learned) -> None:
    """Raises RefusedError where a silo's changes are none of these weights."""
    parts = {part_of(name) for name in weights}
    for part, rows in learned.rows.items():
        if part not in parts or not 0 < rows < _MOST_ROWS:
            raise RefusedError(f"it says {rows} rows of {part or 'all'}, expected a positive number of a part there is")
    expected = {name for name in weights if part_of(name) in learned.rows}
    if ALL not in learned.rows or changes.keys() != expected:
        other = sorted(changes.keys() ^ expected)
        raise RefusedError(f"it has other tensors than its rows train: {', '.join(other[:3]) or 'none of all'}")
    for name, change in sorted(changes.items()):
        if change.shape != weights[name].shape or change.dtype != np.float32:
            raise RefusedError(
                f"{name} is {change.dtype} {change.shape}, expected float32 {weights[name].shape} as the coordinator's"
            )
        if not np.isfinite(change).all():
            raise RefusedError(f"{name} holds numbers that are none (NaN or infinite)")
        if name.endswith("running_var") and (weights[name] + change < 0).any():
            raise RefusedError(f"{name} is a variance below zero")


def combined(
    weights: Mapping[str, np.ndarray], updates: Sequence[Update], combination: Combination, learned: Collection[str]
) -> dict[str, np.ndarray]:
    """The one change of each tensor that silos' changes become; none where no silo trained it. What gradients move is
    combined apart from statistics, whose numbers are of another size."""
    change = {name: np.zeros_like(weight) for name, weight in weights.items()}
    for part, is_learned in sorted({(part_of(name), name in learned) for name in weights}):
        names = [name for name in weights if (part_of(name), name in learned) == (part, is_learned)]
        of = [update for update in updates if update.learned.rows.get(part, 0) > 0]
        if of:
            changes_SP = np.stack([flat(update.changes, names) for update in of])
            weights_S = np.array([update.learned.rows[part] for update in of], np.float64)
            change |= unflat(combination.combine(changes_SP, weights_S), weights, names)
    return change


def weighed(
    changes: Mapping[str, np.ndarray], rows: Mapping[str, int], weights: Mapping[str, np.ndarray]
) -> np.ndarray:
    """What is added up where the coordinator sees sums alone: the changes of all tensors times a silo's rows of their
    part, zero where it has none, then these rows."""
    names, parts = sorted(weights), _parts(weights)
    zero = {name: np.zeros_like(weight) for name, weight in weights.items()}
    times = {
        name: rows.get(part_of(name), 0) * array.astype(np.float64) for name, array in (zero | {**changes}).items()
    }
    return np.concatenate([flat(times, names), [float(rows.get(part, 0)) for part in parts]])


def check_masked(weights: Mapping[str, np.ndarray], changes: Mapping[str, np.ndarray], learned: Learned) -> None:
    """Raises RefusedError where what a silo hid is not as long as it has to be; there is nothing else to see."""
    length = sum(weight.size for weight in weights.values()) + len(_parts(weights))
    hidden = changes.get("masked")
    if changes.keys() != {"masked"} or hidden is None or hidden.dtype != np.uint64 or hidden.shape != (length,):
        raise RefusedError(f"expected {length:,} masked numbers (uint64) and nothing else")


def mean_of_sums(sums: np.ndarray, weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The mean change of each tensor, of the sum of what `weighed` gave.

    Raises:
        ValueError: the sum is of no such numbers.
    """
    names, parts = sorted(weights), _parts(weights)
    rows = dict(zip(parts, sums[len(sums) - len(parts) :].tolist(), strict=True))
    change = unflat(sums[: len(sums) - len(parts)], weights, names)
    found = {name: array / max(1.0, rows[part_of(name)]) for name, array in change.items()}
    if any(count < 0 for count in rows.values()) or not all(np.isfinite(array).all() for array in found.values()):
        raise ValueError("the sum of what silos hid is none: one of them sent other numbers, and which cannot be seen")
    return found


def _parts(weights: Mapping[str, np.ndarray]) -> list[str]:
    return sorted({part_of(name) for name in weights})


def flat(tensors: Mapping[str, np.ndarray], names: Collection[str]) -> np.ndarray:
    """All numbers of these tensors, one behind the other."""
    return np.concatenate([tensors[name].ravel().astype(np.float64) for name in names])


def unflat(numbers: np.ndarray, like: Mapping[str, np.ndarray], names: Collection[str]) -> dict[str, np.ndarray]:
    """The tensors that `flat` made one of."""
    ends = np.cumsum([like[name].size for name in names])[:-1]
    split = zip(names, np.split(numbers, ends), strict=True)
    return {name: part.reshape(like[name].shape).astype(np.float32) for name, part in split}
