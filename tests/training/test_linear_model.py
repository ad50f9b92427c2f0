"""The linear model beside the language model: what it learns, when it answers, and that nobody else's inputs matter."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from tests.training.tiny_vectors import FEATURES, MODALITIES
from training.building import build_model
from training.catalog import OUTPUTS
from training.collator import make_collator
from training.data import SampleDataset
from training.family import Choice
from training.linear_model import LinearModel, best_share, fit_linear
from training.model import FusionModel
from training.outputs.class_ import ClassOutput
from training.settings import ModelSettings, TrainingSettings, complete
from training.tokenizer import fit_tokenizer
from training.train import TrainingTask, fit, scored_answers

TOKENIZER = fit_tokenizer(["high", "low"], 300)
SETTINGS = ModelSettings(width=16, layers=1, heads=2, tokens=1, output=Choice("class"), modality_dropout=0.0)
MODEL = complete(SETTINGS, FEATURES.forms)
LABELS: dict[str, tuple[Any, tuple[str, str]]] = {
    "class": ("class", ("low", "high")),
    "multi_label": ("multi_label", ("low", "high;loud")),
    "number": ("number", ("-1", "1")),
    "ranking": ("ranking", ("low > high", "high > low")),
    "several": (
        {"kind": "several", "outputs": {"level": "class", "number": "number"}},
        (json.dumps({"level": "low"}), json.dumps({"level": "high", "number": "2"})),
    ),
    "with a text": (
        {"kind": "several", "outputs": {"level": "class", "word": "text"}},
        (json.dumps({"level": "low", "word": "low"}), json.dumps({"level": "high"})),
    ),
}


def made(name: str = "class", **settings: Any) -> FusionModel:
    output, labels = LABELS[name]
    torch.manual_seed(0)
    model = build_model(replace(MODEL, output=output, **settings), FEATURES, TOKENIZER, MODALITIES, labels)
    return model.eval()


def batch_of(model: FusionModel, rows: SampleDataset, name: str = "class", numbers: range = range(32)) -> Any:
    """Of samples whose labels, of odd and of even ones, are those of LABELS."""
    labels = [LABELS[name][1][n % 2] for n in numbers]
    targets = partial(model.output.targets, tokenizer=TOKENIZER)
    collator = replace(make_collator(model, TOKENIZER, FEATURES), targets=targets)
    return collator([rows[n] | {"label": label} for n, label in zip(numbers, labels, strict=True)])


def fitted(rows: SampleDataset, name: str = "class", share: float | None = 1.0, **settings: Any) -> FusionModel:
    model = made(name, **settings)
    parts = [batch_of(model, rows, name, numbers) for numbers in (range(8), range(8, 16), range(16, 24))]
    fit_linear(model, parts[:2], parts[2:], share)()
    return model


class Beside(torch.nn.Module):
    """What `fit_linear` uses of a model; `deep` is what the rest of it says of targets."""

    device, config = torch.device("cpu"), type("Config", (), {"modalities": ["image"]})

    def __init__(self, output: Any, linear: LinearModel, deep: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.output, self.linear, self.deep = output, linear, deep

    def forward(self, labels: Tensor, **_: Tensor) -> Any:
        return type("Said", (), {"logits": self.deep(labels)})


def test_it_is_a_logistic_regression_of_the_mean_vectors() -> None:
    random, output = np.random.default_rng(0), ClassOutput({"classes": ["a", "b", "c"]})
    values = torch.from_numpy(random.normal(3, 5, (40, 2, 6))).float()
    targets = torch.from_numpy(random.integers(0, 3, 40))

    model: Any = Beside(output, LinearModel({"image": 6}, 3), lambda rows: torch.zeros(len(rows), 3))
    mask = torch.ones(40, 2, dtype=torch.bool)
    mask[::2, 1] = False
    there = torch.ones(40, 1, dtype=torch.bool)
    batch = {"present": there, "image": values, "image_mask": mask, "labels": targets}
    fit_linear(model, [batch], [], 1.0)
    means = torch.stack([row[real].mean(0) for row, real in zip(values, mask, strict=True)]).numpy()
    x = (means - means.mean(0)) / means.std(0) / 6**0.5
    regression = LogisticRegression(C=100.0, tol=1e-8, max_iter=1000).fit(x, targets.numpy())
    said, share = model.linear(*model.linear.pooled({"image": there[:, 0]}, batch))
    assert share.tolist() == [[1.0] * 3] * 40
    np.testing.assert_allclose(said.softmax(1), regression.predict_proba(x), atol=2e-3)


def test_until_it_is_fitted_it_has_no_part_in_any_answer(vectors: SampleDataset) -> None:
    model, alone = made(), made(linear_share=0.0)
    assert model.linear is not None and alone.linear is None
    batch = batch_of(model, vectors)
    torch.testing.assert_close(model(**batch).logits, alone(**batch).logits)
    fit_linear(model, [batch], [], None)  # no rows from which its share could be measured
    assert not model.linear.share.any()


@pytest.mark.parametrize(("name", "fusion"), [*((name, "attention") for name in LABELS), ("several", "logit")])
def test_it_answers_whatever_the_output_and_the_fusion(name: str, fusion: str, vectors: SampleDataset) -> None:
    model = fitted(vectors, name, fusion=Choice(fusion))
    batch = batch_of(model, vectors, name, range(24, 32))
    said = model.scored_answers(batch, TOKENIZER)
    answers = [answer.parts["level"].prediction if answer.parts else answer.prediction for answer in said]
    read = [model.output.read(label) for label in LABELS[name][1]]
    right = [value["level"] if isinstance(value, dict) else value for value in read]
    told = [right[n % 2] for n in range(24, 32)]
    if name == "number":
        np.testing.assert_allclose(answers, told, atol=0.5)
    else:
        assert answers == told


def test_what_is_hidden_never_matters_and_nothing_is_said_of_nothing(vectors: SampleDataset) -> None:
    model = fitted(vectors)
    batch = batch_of(model, vectors)
    batch["present"][:, 1] = False
    before = model(**batch).logits
    batch["image"] = torch.full_like(batch["image"], 1e6)
    batch["speech"] = torch.where(batch["speech_mask"][..., None], batch["speech"], 1e6)
    torch.testing.assert_close(model(**batch).logits, before)
    batch["present"][:] = False
    assert model.linear is not None
    _, share = model._beside(batch["present"], batch) or (None, torch.ones(1))
    assert not share.any()


def test_soft_tokens_of_another_row_bring_what_is_said_of_that_row(vectors: SampleDataset) -> None:
    model = fitted(vectors)
    batch, other = batch_of(model, vectors), torch.arange(32).roll(1)
    answers = model.answer(batch, TOKENIZER)
    assert answers == ["low", "high"] * 16
    assert model.answer(batch, TOKENIZER, other) == ["high", "low"] * 16
    torch.testing.assert_close(model(**batch, shuffle=other).logits, model(**batch).logits[other])


def test_each_of_several_contents_counts(vectors: SampleDataset) -> None:
    linear = LinearModel({"image": 2}, 2)
    values = torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]], [[9.0, 9.0]]])
    features = {
        "image": values,
        "image_mask": torch.ones(3, 1, dtype=torch.bool),
        "image_rows": torch.tensor([0, 0, 1]),
    }
    means, has = linear.pooled({"image": torch.tensor([True, False])}, features)
    assert means.tolist() == [[2.0, 3.0], [0.0, 0.0]] and has.tolist() == [[True], [False]]


def test_the_share_is_what_rows_say_that_trained_nothing_and_few_rows_say_little() -> None:
    output, random = ClassOutput({"classes": ["a", "b"]}), torch.Generator().manual_seed(0)
    targets = torch.arange(200) % 2
    good, noise = torch.eye(2)[targets] * 4, torch.randn(200, 2, generator=random) * 4

    def share(said: Tensor, beside: Tensor, rows: int = 200) -> float:
        return best_share(output, said[:rows], beside[:rows], targets[:rows])

    assert share(noise, good) >= 0.8 and share(good, noise) <= 0.2 and share(good, good) == 0.5
    assert 0.5 <= share(noise, good, rows=4) < share(noise, good)


def test_each_of_several_outputs_has_a_share_of_its_own() -> None:
    settings = ModelSettings(outputs={"a": "class", "b": "class", "n": "number"})
    labels = [json.dumps({"a": "xy"[n % 2], "b": "xy"[n // 2 % 2], "n": n % 5}) for n in range(80)]
    output: Any = OUTPUTS.make(settings.output, OUTPUTS.make(settings.output, {}).fit(labels, None, settings))
    targets = output.targets(labels, None)
    # The vectors tell a, of n little and of b nothing; the rest of the model knows b and n, and of a nothing.
    noise = torch.randn(80, 2, generator=torch.Generator().manual_seed(0))
    values = torch.stack([targets[:, 0], targets[:, 2] + noise[:, 0]], 1)[:, None]

    def deep(wanted: Tensor) -> Tensor:
        n = wanted[:, 2:] + noise[:, 1:] / 8
        return torch.cat([noise * 4, torch.eye(2)[wanted[:, 1].long()] * 9, n], 1)

    model: Any = Beside(output, LinearModel({"image": 2}, 5), deep)
    there = torch.ones(80, 1, dtype=torch.bool)
    batch = {"present": there, "image": values, "image_mask": there, "labels": targets}
    fit_linear(model, [batch], [batch], None)()
    shares = model.linear.shares(output)
    assert shares["a"] > 0.6 and shares["n"] < 0.4, "a number has no temperature to be better with"
    assert shares["b"] == 0.5, "what says nothing of it is nothing to its temperature"
    assert model.linear.share.tolist() == pytest.approx([shares[name] for name in "aabbn"])
    assert model.linear(values[:, 0], there)[1].tolist() == [model.linear.share.tolist()] * 80
    lacking = batch | {"labels": targets.clone()}
    lacking["labels"][:, 0] = torch.nan
    fit_linear(model, [batch], [lacking], None)
    assert model.linear.shares(output) == shares | {"a": 0.5}, "no row says anything of it"


def test_a_training_measures_its_share_and_a_saved_model_has_it(vectors: SampleDataset, tmp_path: Path) -> None:
    training = TrainingSettings(epochs=0.5, batch_size=8, evaluations=0)
    task = TrainingTask(
        model=MODEL,
        training=training,
        features=FEATURES,
        train=vectors.take(range(16)),
        validation=vectors.take(range(16, 24)),
        tokenizer=TOKENIZER,
    )
    model = fit(task, tmp_path / "checkpoints").model
    assert model.linear is not None and 0 < model.linear.shares(model.output)[""] < 1
    rows = vectors.take(range(24, 32))
    assert [a.prediction for a in scored_answers(model, TOKENIZER, rows, FEATURES)] == rows.labels
    for modality in MODALITIES:  # it knows how it is to have one alone
        keep = frozenset([modality])
        have = [n for n in range(len(rows)) if rows[n][modality] is not None]
        assert [a.prediction for a in scored_answers(model, TOKENIZER, rows.take(have), FEATURES, keep)] == rows.take(
            have
        ).labels
    model.save_pretrained(tmp_path / "saved")
    again = FusionModel.from_pretrained(tmp_path / "saved").eval()
    assert scored_answers(again, TOKENIZER, rows, FEATURES) == scored_answers(model, TOKENIZER, rows, FEATURES)
