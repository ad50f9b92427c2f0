"""Whether what a model reads still tells the column that an objective, the critic, is to take out of it: asked of a
critic that nobody has worked against.

The one that trained with the model says little: it may have been fooled, or have given up. So a logistic regression of
the frozen representations is fitted on training rows when training has ended, and on those of the same model before its
first step.
"""

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from training.catalog import OBJECTIVES
from training.collator import make_collator
from training.objectives.critic import side_by_side
from training.objectives.options import FUSED, Critic
from training.records import CriticFigures
from training.train import TrainingTask, new_model
from training.trainer import even_batches

if TYPE_CHECKING:
    from training.data import SampleDataset
    from training.model import FusionModel

_ROWS = 4096  # that it is fitted on
_LEAST = 20  # validation rows with values of training rows; of fewer, a fifth of the training rows is kept for it
_BATCH = 256


def judge_critic(task: TrainingTask, model: "FusionModel") -> CriticFigures | None:
    """What a fresh critic tells of the validation rows, before and after training; where too few of these have values
    that training rows have, too (no speaker on two sides of a split), of every fifth training row, which it then is not
    fitted on. None: no objective is a critic, or there are not enough rows.

    Args:
        model: as it was trained by the task.
    """
    options: Any = next((o for o in map(OBJECTIVES.options, task.training.objectives) if isinstance(o, Critic)), None)
    if options is None:
        return None
    rows, scored = _known(task.train, task.said), _known(task.validation, task.said)
    rows = rows.take(np.sort(np.random.default_rng(task.training.seed).permutation(len(rows))[:_ROWS]))
    values = set(_values(rows, task.said))
    scored = scored.take([n for n, value in enumerate(_values(scored, task.said)) if value in values])
    if is_apart := len(scored) < _LEAST:
        fifth = np.arange(len(rows)) % 5 == 0
        scored, rows = rows.take(np.flatnonzero(fifth)), rows.take(np.flatnonzero(~fifth))
    with torch.random.fork_rng(devices=[]):
        untrained: Any = new_model(task)
        untrained.to(model.device).eval()
    before, after = (_told(task, one, options.on, rows, scored) for one in (untrained, model.eval()))
    if before is None or after is None:
        return None
    (first, majority, n), (last, _, _) = before, after
    return CriticFigures(
        column=options.column,
        on=options.on,
        rows=n,
        split="train" if is_apart else "validation",
        before=first,
        after=last,
        majority=majority,
    )


def _told(
    task: TrainingTask, model: "FusionModel", on: str, rows: "SampleDataset", scored: "SampleDataset"
) -> tuple[float, float, int] | None:
    """The share of the rows that a fresh critic is right of, that of the value which most of its own rows have, and how
    many they are."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    places, values = _read(task, model, on, rows)
    others, wanted = _read(task, model, on, scored)
    if len(set(values)) < 2 or not len(wanted):
        return None
    critic = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(places, values)
    ((most, _),) = Counter(values).most_common(1)
    return float(critic.score(others, wanted)), float(np.mean(np.array(wanted) == most)), len(wanted)


@torch.inference_mode()
def _read(task: TrainingTask, model: "FusionModel", on: str, rows: "SampleDataset") -> tuple[np.ndarray, list[str]]:
    """What the critic reads of each row that has it, float32 (R, F), and what the column says."""
    collator = make_collator(model, task.tokenizer, task.features)
    found, there = [np.zeros((0, 1), np.float32)], [np.zeros(0, np.bool_)]
    for batch in even_batches(rows, collator, _BATCH) if len(rows) else ():
        tokens_BNTD, mask_BNT = model.encode(**{n: x.to(model.device) for n, x in batch.items() if n != "seeds"})
        if on == FUSED:
            read_BF = side_by_side(model.fuse(tokens_BNTD, mask_BNT), model.fusion.soft_mask(mask_BNT))
            has_B = np.ones(len(read_BF), np.bool_)
        else:
            n = model.config.modalities.index(on)
            read_BF, has_B = side_by_side(tokens_BNTD[:, n], mask_BNT[:, n]), mask_BNT[:, n].any(1).cpu().numpy()
        found.append(read_BF.float().cpu().numpy()[has_B])
        there.append(has_B)
    has = np.concatenate(there)
    said = [value for value, is_there in zip(_values(rows, task.said), has, strict=True) if is_there]
    return np.concatenate(found[1:] or found), said


def _known(rows: "SampleDataset", said: Any) -> "SampleDataset":
    """The rows of which the column says something."""
    return rows.take([n for n, sample in enumerate(rows.index["sample_id"].to_pylist()) if sample in said])


def _values(rows: "SampleDataset", said: Any) -> list[str]:
    return [said[sample] for sample in rows.index["sample_id"].to_pylist()]
