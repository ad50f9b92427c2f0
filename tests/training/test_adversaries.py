"""The contract of adversaries, over every kind of the catalogue; and that who trained against one holds against it."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from training.adversaries.base import length
from training.catalog import ADVERSARIES
from training.family import Choice
from training.features import FeatureSettings
from training.settings import TrainingSettings
from training.trainer import Trainer
from training.under_attack import answers_under_attack

PLACES = "tokens", "inputs"


@pytest.fixture(params=ADVERSARIES.names())
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def make(kind: str, **options: Any) -> Any:
    return ADVERSARIES.make(ADVERSARIES.choose({"kind": kind, **options}))


@pytest.mark.parametrize("on", PLACES)
def test_changes_are_small_and_no_others_of_their_size_are_worse(kind, on, rows, make_model) -> None:
    model, batch = make_model(rows, output=Choice("class"))
    plain = model.eval()(**batch).loss
    adversary = make(kind, on=on, epsilon=0.02)
    with adversary.at(model) as changes:
        torch.testing.assert_close(model(**batch).loss, plain, rtol=0, atol=0)
        worst = adversary.loss(model, batch, changes, model(**batch).loss)
        assert set(changes.of) == set(model.config.modalities)
        for modality, change in changes.of.items():
            assert (length(change) <= adversary.epsilon * changes.lengths[modality] * 1.0001).all()
            assert (length(change) > 0).all(), "each content is changed"
        found = dict(changes.of)
        for seed in range(5):
            torch.manual_seed(seed)
            for modality, change in found.items():
                other = torch.randn_like(change)
                changes.of[modality] = other / length(other) * length(change)
            assert model(**batch).loss < worst
    torch.testing.assert_close(model(**batch).loss, plain, rtol=0, atol=0)
    assert worst > plain


def test_one_step_goes_along_the_gradient(rows, make_model) -> None:
    """Of tokens, whose gradient the model's output gives, too."""
    model, batch = make_model(rows, output=Choice("class"))
    tokens, slopes = {}, {}
    for modality, projector in model.eval().projectors.items():
        projector.register_forward_hook(lambda _, __, said, m=modality: tokens.update({m: said}))
    loss = model(**batch).loss
    for modality, said in tokens.items():
        (slopes[modality],) = torch.autograd.grad(loss, said, retain_graph=True)
        tokens[modality] = said.detach()
    adversary = make("fgm", epsilon=0.3)
    with adversary.at(model) as changes:
        adversary.worsen(model, batch, changes, model(**batch).loss)
    for modality, change in changes.of.items():
        for row, slope, said in zip(change, slopes[modality], tokens[modality], strict=True):
            torch.testing.assert_close(row, 0.3 * said.norm() * slope / slope.norm(), rtol=1e-4, atol=1e-6)


def test_several_steps_find_worse_than_one(rows, make_model) -> None:
    model, batch = make_model(rows, output=Choice("class"))
    losses = {}
    for kind in ("fgm", "pgd"):
        adversary = make(kind, epsilon=0.5, **({"steps": 10} if kind == "pgd" else {}))
        with adversary.at(model.eval()) as changes:
            losses[kind] = adversary.loss(model, batch, changes, model(**batch).loss).item()
    assert losses["pgd"] > losses["fgm"]


def test_training_minimises_both_losses(kind, rows, make_model) -> None:
    model, batch = make_model(rows)
    adversary = make(kind, weight=3.0)
    accelerator = SimpleNamespace(unwrap_model=lambda model, **_: model, autocast=torch.enable_grad)
    trainer: Any = Trainer.__new__(Trainer)
    trainer.model, trainer.accelerator, trainer.named_losses, trainer.adversary = model, accelerator, {}, adversary
    with_objective(model)
    loss, output = trainer.compute_loss(model, batch, return_outputs=True)
    torch.testing.assert_close(loss, (output.losses["answer"] + 3 * output.losses["adversary"]) / 4)
    loss.backward()
    assert all(p.grad is not None for p in model.fusion.parameters())
    assert trainer.named_losses.keys() == {"loss_answer", "loss_adversary"}


def with_objective(model: Any) -> None:
    from training.catalog import OBJECTIVES

    training = TrainingSettings()
    made = [OBJECTIVES.make(one, model.config, training) for one in training.objectives]
    model.objectives = torch.nn.ModuleList(made)
    model.train()


@pytest.mark.slow
def test_who_trained_against_it_holds_against_it(make_model: Callable[..., Any], tokenizer: Any) -> None:
    """A vector tells the answer by one of its numbers, and by all others a little, in noise."""
    features = FeatureSettings(image={"kind": "vector", "width": 65})
    random = np.random.default_rng(0)

    def row(n: int) -> dict[str, Any]:
        side = 1 if n % 2 else -1
        vector = np.concatenate([[side * 2], side * 0.3 + random.normal(0, 1, 64)]).astype(np.float32)
        given = {"image": {"vector": vector[None]}, "text": None, "speech": None}
        return given | {"sample_id": str(n), "label": "79"[n % 2], "epoch": 0}

    train, test = [row(n) for n in range(256)], [row(n) for n in range(200)]
    right = {}
    for against in (None, make("pgd", on="inputs", epsilon=0.25)):
        model, batch = make_model(train, features, output=Choice("class"), modality_dropout=0.0)
        with_objective(model)
        trainer: Any = Trainer.__new__(Trainer)
        trainer.model, trainer.named_losses, trainer.adversary = model, {}, against
        trainer.accelerator = SimpleNamespace(unwrap_model=lambda model, **_: model, autocast=torch.enable_grad)
        optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
        for _ in range(50):
            optimizer.zero_grad()
            trainer.compute_loss(model, batch).backward()
            optimizer.step()
        attack = make("pgd", on="inputs", epsilon=0.25, steps=5)
        answers = answers_under_attack(model.eval(), tokenizer, test, features, attack)
        assert len(answers) == len(test)
        hits = [answer.prediction == row["label"] for answer, row in zip(answers, test, strict=True)]
        right[against is not None] = np.mean(hits)
    assert right[True] > right[False] + 0.1
