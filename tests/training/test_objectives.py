"""The contract of objectives, over every kind of the catalogue and one of a user's own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from training.catalog import OBJECTIVES
from training.settings import TrainingSettings

KINDS = [*OBJECTIVES.names(), "own_kinds:OwnObjective"]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, own_kinds: Path) -> str:
    return request.param


def with_objectives(model: Any, *objectives: Any) -> Any:
    training = TrainingSettings(objectives=objectives)
    model.objectives = nn.ModuleList(OBJECTIVES.make(o, model.config, training) for o in training.objectives)
    return model.train()


def test_gradients_reach_every_parameter(kind: str, rows: Any, make_model: Callable[..., Any]) -> None:
    model, batch = make_model(rows)
    output = with_objectives(model, kind)(**batch)
    assert output.losses and all(loss.shape == () and loss.isfinite() for loss in output.losses.values())
    output.loss.backward()
    assert not [name for name, p in model.objectives.named_parameters() if not p.grad.abs().sum() > 0]
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.fusion.parameters())


def test_the_loss_is_the_weighted_sum(kind: str, rows: Any, make_model: Callable[..., Any]) -> None:
    model, batch = make_model(rows)
    plain = with_objectives(model, kind)(**batch)
    torch.testing.assert_close(plain.loss, sum(plain.losses.values()))
    state = model.objectives.state_dict()
    with_objectives(model, {"kind": kind, "weight": 2.5}).objectives.load_state_dict(state)
    heavy = model(**batch)
    torch.testing.assert_close(heavy.losses, plain.losses)
    torch.testing.assert_close(heavy.loss, 2.5 * plain.loss)


def test_what_a_row_lacks_never_matters(kind: str, rows: Any, make_model: Callable[..., Any]) -> None:
    model, batch = make_model(rows)
    losses = with_objectives(model, kind)(**batch).losses
    absent = ~batch["present"][:, 1]
    assert absent.any() and not absent.all()
    garbage = batch["image"].clone()
    garbage[absent] = torch.nan
    torch.testing.assert_close(model(**(batch | {"image": garbage})).losses, losses, rtol=0, atol=0)


def test_several_are_added_and_evaluation_knows_only_the_answers_loss(
    own_kinds: Path, rows: Any, make_model: Callable[..., Any]
) -> None:
    model, batch = make_model(rows)
    output = with_objectives(model, "answer", {"kind": "own_kinds:OwnObjective", "weight": 0.5})(**batch)
    assert list(output.losses) == ["answer", "find_image"]
    torch.testing.assert_close(output.loss, output.losses["answer"] + 0.5 * output.losses["find_image"])
    evaluated = model.eval()(**batch)
    torch.testing.assert_close(evaluated.loss, model.output.loss(evaluated.logits, batch["labels"]))
    assert evaluated.losses is None
    model.train().objectives.append(model.objectives[0])
    with pytest.raises(ValueError, match="two objectives have a loss called 'answer'"):
        model(**batch)


@pytest.mark.parametrize(
    ("objectives", "words"),
    [
        ([], "objectives is .*, expected at least one, and none twice"),
        (["answer", {"kind": "answer", "weight": 2}], "none twice"),
        (["anwser"], "objective is 'anwser', expected one of answer.*did you mean answer"),
        ([{"kind": "answer", "weight": 0}], "weight is 0.0, expected a positive number"),
        ([{"kind": "answer", "wieght": 2}], "objective answer has no option 'wieght'; there are weight; did you mean"),
    ],
)
def test_what_is_wrong_is_named(objectives: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TrainingSettings(objectives=tuple(objectives))
