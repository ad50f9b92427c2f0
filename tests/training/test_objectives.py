"""The contract of objectives, over every kind of the catalogue and one of a user's own; and what each minimises."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.training.conftest import FEATURES
from training.catalog import OBJECTIVES
from training.collator import make_collator
from training.objectives.options import check_objectives
from training.objectives.unimodal import shares
from training.outputs.text import TextOutput
from training.settings import TrainingSettings

KINDS = [*OBJECTIVES.names(), "own_kinds:OwnObjective"]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, own_kinds: Path) -> str:
    return request.param


def with_objectives(model: Any, *objectives: Any) -> Any:
    training = TrainingSettings(objectives=objectives)
    model.objectives = nn.ModuleList(OBJECTIVES.make(o, model.config, training) for o in training.objectives)
    for objective in model.objectives:
        objective.fit(model, {"0": "ann", "1": "ben", "2": "ann"})
    return model.train()


def choice(kind: str, **options: Any) -> dict[str, Any]:
    needed = {"distillation": {"teacher": "1"}, "critic": {"column": "speaker"}}
    return {"kind": kind, **needed.get(kind, {}), **options}


def made(make_model: Callable[..., Any], rows: Any, **settings: Any) -> Any:
    """Model and batch, with what a teacher and a column say of each row."""
    model, batch = make_model(rows, **settings)
    teacher = torch.randn(len(rows), model.config.llm_width, generator=torch.Generator().manual_seed(0))
    column = torch.arange(len(rows)) % 3
    return model, batch | {"teacher": teacher, "column": column.masked_fill(column == 2, -100)}


def test_gradients_reach_every_parameter(
    kind: str, rows: Any, unlike_rows: Any, make_model: Callable[..., Any]
) -> None:
    labelled = [row | {"label": "79"[n % 2], "epoch": 0} for n, row in enumerate(unlike_rows)]
    model, batch = made(make_model, [*rows, *labelled])
    output = with_objectives(model, choice(kind))(**batch)
    assert output.losses and all(loss.shape == () and loss.isfinite() for loss in output.losses.values())
    output.loss.backward()
    assert not [name for name, p in model.objectives.named_parameters() if not p.grad.abs().sum() > 0]
    for part in (model.encoders, model.projectors):
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())


def test_the_loss_is_the_weighted_sum(kind: str, rows: Any, make_model: Callable[..., Any]) -> None:
    model, batch = made(make_model, rows)
    plain = with_objectives(model, choice(kind))(**batch)
    torch.testing.assert_close(plain.loss, sum(plain.losses.values()))
    state = model.objectives.state_dict()
    with_objectives(model, choice(kind, weight=2.5)).objectives.load_state_dict(state)
    heavy = model(**batch)
    torch.testing.assert_close(heavy.losses, plain.losses)
    torch.testing.assert_close(heavy.loss, 2.5 * plain.loss)


def test_what_a_row_lacks_never_matters(kind: str, rows: Any, make_model: Callable[..., Any]) -> None:
    model, batch = made(make_model, rows)
    losses = with_objectives(model, choice(kind))(**batch).losses
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
        (
            ["anwser"],
            "objective is 'anwser', expected one of answer, .*critic, distillation, unimodal.*did you mean answer",
        ),
        ([{"kind": "distillation", "teacher": "best"}], "teacher is 'best', expected a version such as 3 or shop/3"),
        ([{"kind": "answer", "weight": 0}], "weight is 0.0, expected a positive number"),
        ([{"kind": "answer", "wieght": 2}], "objective answer has no option 'wieght'; there are weight; did you mean"),
    ],
)
def test_what_is_wrong_is_named(objectives: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TrainingSettings(objectives=tuple(objectives))


ENCODERS = dict.fromkeys(("text", "image", "speech"), "small_transformer")  # without statistics of a batch


def test_unimodal_losses_are_those_of_rows_that_have_one_modality(rows: Any, make_model: Callable[..., Any]) -> None:
    for fusion in ("attention", "logit"):
        model, batch = make_model(rows, encoders=ENCODERS, fusion=fusion)
        losses = with_objectives(model, "unimodal")(**batch).losses
        assert list(losses) == ["unimodal_text", "unimodal_image", "unimodal_speech"]
        for name, loss in losses.items():
            modality = name.removeprefix("unimodal_")
            alone = [row | {m: None for m in ENCODERS if m != modality} for row in rows if row[modality] is not None]
            _, single = make_model(alone, encoders=ENCODERS, fusion=fusion)
            torch.testing.assert_close(loss, model.eval()(**single).loss)
            model.train()


def test_contrast_is_clips_loss_of_the_rows_that_have_both(
    rows: Any, unlike_rows: Any, make_model: Callable[..., Any]
) -> None:
    labelled = [row | {"label": "79"[n % 2], "epoch": 0} for n, row in enumerate(unlike_rows)]
    lacking = [row | {"image": None} if n % 3 == 0 else row for n, row in enumerate(labelled)]
    model, batch = make_model(lacking, encoders=ENCODERS)
    (objective,) = with_objectives(model, "contrastive").objectives
    output = model(**batch)
    assert list(output.losses) == ["contrastive_text_image", "contrastive_text_speech", "contrastive_image_speech"]
    both = [n for n in range(len(lacking)) if n % 3]
    sides = []
    for modality in ("text", "image"):
        places = []
        for n in both:
            tokens = output.tokens[modality][n][output.masks[modality][n]]
            places.append(objective.projections[modality](tokens.mean(0)))
            places[-1] = places[-1] / places[-1].norm()
        sides.append(torch.stack(places))
    said = sides[0] @ sides[1].T / 0.07
    expected = -(said.log_softmax(1).diagonal().mean() + said.log_softmax(0).diagonal().mean()) / 2
    torch.testing.assert_close(output.losses["contrastive_text_image"], expected)
    model, batch = make_model(rows[:3])  # of which each has one modality
    assert all(loss == 0 for loss in with_objectives(model, "contrastive")(**batch).losses.values())


@pytest.mark.parametrize("fusion", ["attention", "interleaved", "logit"])
def test_distillation_is_half_the_squared_distance_to_the_teacher(
    fusion: str, rows: Any, make_model: Callable[..., Any]
) -> None:
    model, batch = made(make_model, rows, encoders=ENCODERS, fusion=fusion)
    batch["teacher"][2] = torch.nan  # which the teacher does not know
    with_objectives(model, {"kind": "distillation", "teacher": "shop/3"})
    found = model(**batch).losses["distillation"]
    given = {name: tensor for name, tensor in batch.items() if name not in ("labels", "teacher")}
    x_m = model.eval().pooled_x_m(given)
    known = [n for n in range(len(rows)) if n != 2]
    torch.testing.assert_close(found, ((x_m - batch["teacher"])[known] ** 2).sum(1).mean() / 2)


def test_a_teacher_has_to_be_named() -> None:
    (objective,) = TrainingSettings(objectives=("distillation",)).objectives
    with pytest.raises(ValueError, match="distillation: teacher is '', expected a version such as 3 or shop/3"):
        check_objectives((objective,), TextOutput({}), "text")


def test_a_student_learns_what_a_row_would_be_with_what_is_hidden(
    unlike_rows: Any, make_model: Callable[..., Any], tokenizer: Any
) -> None:
    rows = [row | {"label": "79"[n % 2], "epoch": 0} for n, row in enumerate(unlike_rows)]
    teacher, batch = make_model(rows, encoders=ENCODERS)
    x_m = teacher.eval().pooled_x_m(batch)
    student, _ = make_model(rows, encoders=ENCODERS)
    with_objectives(student, "answer", choice("distillation"))
    collator = make_collator(student, tokenizer, FEATURES, frozenset({"image", "text"}))
    targets = partial(student.output.targets, tokenizer=tokenizer)
    placed = {row["sample_id"]: place.numpy() for row, place in zip(rows[1:], x_m[1:], strict=True)}
    batch = replace(collator, targets=targets, teacher=placed)(rows)
    assert batch["teacher"][0].isnan().all() and torch.equal(batch["teacher"][1:], x_m[1:])
    optimizer = torch.optim.AdamW(student.parameters(), 1e-2)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        output = student(**batch)
        output.loss.backward()
        optimizer.step()
        losses.append(output.losses["distillation"].item())
    assert losses[-1] < losses[0] / 2


def test_a_stronger_modality_is_damped_as_in_the_paper() -> None:
    """OGM: rho_u = s_u / s_v; the stronger one keeps 1 - tanh(alpha * rho_u), the weaker one all."""
    losses = {"image": -torch.tensor(0.6).log(), "speech": -torch.tensor(0.2).log()}
    kept = shares(losses, 0.3)
    torch.testing.assert_close(kept["image"], torch.tensor(1 - math.tanh(0.3 * 0.6 / 0.2)))
    assert kept["speech"] == 1
    three = shares(losses | {"text": -torch.tensor(0.4).log()}, 0.3)  # of more: against the mean of the others
    torch.testing.assert_close(three["image"], torch.tensor(1 - math.tanh(0.3 * 0.6 / 0.3)))
    assert three["speech"] == three["text"] == shares({"text": losses["image"]}, 0.3)["text"] == 1


def test_balancing_multiplies_the_gradients_of_an_encoder(rows: Any, make_model: Callable[..., Any]) -> None:
    found = []
    for balance in (0.0, 0.5):
        model, batch = make_model(rows, encoders=ENCODERS)
        output = with_objectives(model, "answer", {"kind": "unimodal", "balance": balance})(**batch)
        output.loss.backward()
        found.append((output.losses, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
    (losses, free), (_, balanced) = found
    kept = shares({name: losses[f"unimodal_{name}"] for name in ENCODERS}, 0.5)
    assert any(share < 1 for share in kept.values()) and any(share == 1 for share in kept.values())
    for name, gradient in free.items():
        part, _, rest = name.partition(".")
        share = kept[rest.split(".")[0]] if part in ("encoders", "projectors") else torch.tensor(1.0)
        torch.testing.assert_close(balanced[name], gradient * share, rtol=1e-4, atol=1e-6)


def test_a_wrong_balance_is_named() -> None:
    with pytest.raises(ValueError, match=r"objective unimodal: balance is 2\.0, expected 0 to 1"):
        TrainingSettings(objectives=("answer", {"kind": "unimodal", "balance": 2}))  # type: ignore[arg-type]
