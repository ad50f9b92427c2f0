"""The critic: what it turns round, what it leaves alone, and that a column can be told before and not after."""

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
import torch
from sklearn.linear_model import Ridge
from torch.nn import functional

from tests.training.test_objectives import ENCODERS, with_objectives
from tests.training.test_train import Stop
from training.cache import FeatureCache
from training.collator import make_collator
from training.data import SampleDataset
from training.family import Choice
from training.features import FeatureSettings
from training.fresh_critic import judge_critic
from training.objectives.critic import Reversal
from training.objectives.options import column_of
from training.schema import DATASET, features_table
from training.settings import ModelSettings, TrainingSettings, complete
from training.tokenizer import fit_tokenizer
from training.train import TrainingTask, fit, make_trainer, new_model

SPEAKERS = {"0": "ann", "1": "ben", "3": "eve", "4": "ben", "6": "ann"}


@pytest.mark.parametrize("on", ["fused", "image"])
def test_the_gradient_into_the_model_is_minus_that_of_the_critics_loss(on, rows, make_model) -> None:
    """Worked out apart: a ridge regression of scikit-learn on the rows before, and its loss without the reversal."""
    critic = {"kind": "critic", "column": "speaker", "on": on, "weight": 0.5, "strength": 0.3}
    random = np.random.default_rng(0)
    pixels = [{"pixels": random.integers(0, 255, (1, 16, 16), np.uint8)} for _ in rows]
    rows = [row | {"image": row["image"] and row["image"] | p} for row, p in zip(rows, pixels, strict=True)]
    model, batch = make_model(rows, encoders=ENCODERS)
    (objective,) = with_objectives(model, critic).objectives
    objective.fit(model, SPEAKERS)
    known = objective.numbers(SPEAKERS)
    batch["column"] = torch.tensor([known.get(row["sample_id"], -100) for row in rows])
    first = model(**batch)
    there = [n for n, row in enumerate(rows) if on == "fused" or row["image"] is not None]
    counted = [n for n in there if rows[n]["sample_id"] in SPEAKERS]
    assert 1 < len(counted) < len(rows)
    seen, said = read(first, on)[counted].detach().numpy(), np.eye(3)[batch["column"][counted]]
    model(**batch).loss.backward()
    found = gradients(model)

    model.zero_grad()
    mean, scale = seen.mean(0), np.maximum(seen.std(0), 1e-6)
    ridge = Ridge(0.01 * len(seen)).fit((seen - mean) / scale, said)
    again = (read(model(**batch), on)[counted] - torch.tensor(mean)) / torch.tensor(scale)
    scores = again @ torch.tensor(ridge.coef_.T).float() + torch.tensor(ridge.intercept_).float()
    (0.5 * functional.cross_entropy(5 * scores, batch["column"][counted])).backward()
    straight = gradients(model)
    assert found.keys() == straight.keys() and any(g.abs().sum() > 1e-4 for g in straight.values())
    for name, gradient in straight.items():
        torch.testing.assert_close(found[name], -0.3 * gradient, rtol=5e-2, atol=1e-4)


def read(output: Any, on: str) -> torch.Tensor:
    return (output.x_m if on == "fused" else output.tokens[on]).flatten(1)


def gradients(model: Any) -> dict[str, torch.Tensor]:
    named = model.named_parameters()
    return {n: p.grad.clone() for n, p in named if p.grad is not None and not n.startswith("objectives.")}


def test_the_reversal_keeps_values_and_grows_as_its_authors_say(rows, make_model) -> None:
    values = torch.randn(3, 4, requires_grad=True)
    assert torch.equal(Reversal.apply(values, 2.0), values)
    (2 * Reversal.apply(values, 3.0)).sum().backward()
    torch.testing.assert_close(values.grad, torch.full((3, 4), -6.0))
    model, _ = make_model(rows)
    (objective,) = with_objectives(model, {"kind": "critic", "column": "x", "strength": 2, "ramp": True}).objectives
    for progress in (0.0, 0.1, 0.5, 1.0):
        objective.progress = progress
        assert objective.strength == pytest.approx(2 * (2 / (1 + math.exp(-10 * progress)) - 1))


FEATURES = FeatureSettings(image={"kind": "vector", "width": 8}, speech={"kind": "vector", "width": 8})
MODEL = ModelSettings(width=16, layers=1, heads=2, tokens=2, output=Choice("class"), modality_dropout=0)
MODEL = complete(replace(MODEL, fusion=Choice("concat")), {m: FEATURES.forms[m] for m in ("image", "speech")})
TOKENIZER = fit_tokenizer(["high", "low"], 300)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[SampleDataset, dict[str, str]]:
    """240 rows: the label in one number of each vector, one of three speakers in three others; two rows of each ten are
    of nobody known."""
    root, random = tmp_path_factory.mktemp("planted"), np.random.default_rng(0)
    speakers, sides = random.integers(0, 3, 240), random.integers(0, 2, 240)
    caches = {}
    for m in ("image", "speech"):
        vectors = random.normal(0, 0.3, (240, 1, 8)).astype(np.float32)
        vectors[np.arange(240), 0, speakers] += 2
        vectors[:, 0, 5] += 2.0 * sides - 1
        stored = [{"id": f"{m}{n}", "fingerprint": "f", "vector": vector} for n, vector in enumerate(vectors)]
        caches[m] = FeatureCache(root, m, "f", {"vector": "float32"})
        table = features_table(m, {"vector": "float32"}, stored)
        caches[m].add(ds.dataset(table), [row["id"] for row in stored])
    index = [
        {
            "sample_id": f"{n:03d}",
            "label": ("low", "high")[sides[n]],
            **{f"{m}_id": f"{m}{n}" for m in caches},
        }
        for n in range(240)
    ]
    said = {f"{n:03d}": ("ann", "ben", "eve")[speakers[n]] for n in range(240) if n % 10 > 1}
    return SampleDataset(pa.Table.from_pylist(index, DATASET), caches), said


def task_of(planted: Any, **options: Any) -> TrainingTask:
    rows, said = planted
    critic = {"kind": "critic", "column": "speaker", **options}
    training = TrainingSettings(epochs=40, batch_size=32, learning_rate=3e-3, evaluations=0, mixing=0.0)
    training = replace(training, objectives=("answer", critic))
    parts = {"train": rows.take(range(160)), "validation": rows.take(range(160, 240))}
    return TrainingTask(model=MODEL, training=training, features=FEATURES, tokenizer=TOKENIZER, said=said, **parts)


@pytest.mark.slow
def test_a_fresh_critic_tells_the_speaker_without_and_not_after(planted, tmp_path: Path) -> None:
    figures, right = {}, {}
    for strength in (0.0, 1.0):
        task = task_of(planted, strength=strength)
        model = fit(task, tmp_path / str(strength)).model
        figures[strength] = judge_critic(task, model)
        collator = make_collator(model, TOKENIZER, FEATURES)
        rows = [task.validation[n] for n in range(80)]
        answers = model.answer(collator(rows), TOKENIZER)
        right[strength] = np.mean([a == row["label"] for a, row in zip(answers, rows, strict=True)])
    without, after = figures[0.0], figures[1.0]
    assert (without.split, without.rows, without.column, without.on) == ("validation", 64, "speaker", "fused")
    assert without.after > 0.8 and without.before == after.before > 0.9
    assert after.after < after.majority + 0.2 < 0.7, after.words
    assert right[1.0] > right[0.0] - 0.05 and right[1.0] > 0.9


def test_of_speakers_who_stand_on_one_side_rows_of_training_are_kept_apart(planted) -> None:
    task = task_of(planted)
    assert new_model(task).linear is None, "which would read the vectors past the critic"
    others = {sample: f"{value}{sample >= '160'}" for sample, value in task.said.items()}
    found = judge_critic(replace(task, said=others), new_model(task))
    assert (found.split, found.rows) == ("train", 26) and found.before > 0.9
    assert judge_critic(replace(task, training=TrainingSettings()), new_model(task)) is None


def test_mixed_rows_are_judged_by_both_speakers(planted, tmp_path: Path) -> None:
    task = task_of(planted)
    network = new_model(task)
    trainer = make_trainer(replace(task, training=replace(task.training, mixing=1.0)), network, tmp_path, (), None)
    batch = trainer.data_collator([task.train[n] for n in range(32)])
    assert not torch.equal(batch["column"], batch["other_column"])
    network.train()(**batch)  # so that there are rows to learn from
    objective, state = network.objectives[1], copy.deepcopy(network.objectives[1].state_dict())
    kept, other = batch.pop("mixing"), batch.pop("other_column")
    losses = []
    for more in ({}, {"column": other}, {"mixing": kept, "other_column": other}):
        objective.load_state_dict(state)
        losses.append(network(**batch | more).losses["critic"])
    torch.testing.assert_close(losses[2], kept * losses[0] + (1 - kept) * losses[1])


def test_a_resumed_training_ends_with_the_same_weights(planted, tmp_path: Path) -> None:
    task = task_of(planted, ramp=True)
    task = replace(task, training=replace(task.training, epochs=2, checkpoint_steps=3))
    whole = fit(task, tmp_path / "whole").model.state_dict()
    with pytest.raises(KeyboardInterrupt):
        fit(task, tmp_path / "cut", callbacks=[Stop(5)])
    resumed = fit(task, tmp_path / "cut").model.state_dict()
    assert not [name for name in whole if not torch.equal(whole[name], resumed[name])]


def test_a_baseline_without_what_the_critic_reads_has_none(planted) -> None:
    task = replace(task_of(planted, on="speech"), keep=frozenset({"image"}))
    assert [type(o).__name__ for o in new_model(task).objectives] == ["AnswerObjective"]


@pytest.mark.parametrize(
    ("options", "said", "words"),
    [
        ({"column": ""}, SPEAKERS, "critic: column is '', expected a column of the samples, such as speaker"),
        ({"on": "smell"}, SPEAKERS, "objective critic: on is 'smell', expected one of fused, text, image, speech"),
        ({"strength": -1}, SPEAKERS, "strength is -1.0, expected 0 to 100"),
        ({}, {}, "column is 'speaker', expected one with several values, which recur: 0 training rows have 0"),
        ({}, {f"{n:03d}": str(n) for n in range(9)}, "9 training rows have 9 different ones"),
    ],
)
def test_what_cannot_be_forgotten_is_refused(options: Any, said: Any, words: str, planted: Any) -> None:
    with pytest.raises(ValueError, match=words):
        new_model(replace(task_of(planted, **options), said=said))
    assert column_of(TrainingSettings().objectives) == ""
