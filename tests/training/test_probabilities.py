"""Every answer says how probable it is, and the temperature makes that true."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from tests.training.conftest import FEATURES
from training.calibration import TEMPERATURES, calibrate
from training.catalog import OUTPUTS
from training.collator import make_collator
from training.features import FeatureSettings
from training.label_metrics import ECE
from training.model import FusionModel
from training.records import Answer
from training.score import bundle_of
from training.serving import ServedModel
from training.settings import GenerationSettings, ModelSettings, TrainingSettings
from training.spec import plan_runs

KINDS = [kind for kind in OUTPUTS.names() if OUTPUTS.load(kind).has_probabilities]


def with_temperature(model: FusionModel, temperature: float) -> FusionModel:
    model.config.fitted = {**model.config.fitted, "temperature": temperature}
    model.output = model.config.make_output()
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_probabilities_are_ordered_and_a_temperature_moves_them_and_no_answer(
    kind: str, rows: Any, make_model: Callable[..., Any], tokenizer: Any
) -> None:
    model, batch = make_model(rows, output=kind)
    cold = model.eval().scored_answers(batch, tokenizer)
    hot = with_temperature(model, 5.0).scored_answers(batch, tokenizer)
    assert [answer.prediction for answer in cold] == [answer.prediction for answer in hot]
    for answer, other in zip(cold, hot, strict=True):
        assert 0 < answer.probability <= 1 and answer.probability != other.probability
        chances = [chance for _, chance in answer.best]
        assert chances == sorted(chances, reverse=True) and len(chances) >= 1


@pytest.mark.parametrize("fusion", ["attention", "logit"])
def test_the_classes_share_a_probability_of_one(
    rows: Any, make_model: Callable[..., Any], tokenizer: Any, fusion: Any
) -> None:
    model, batch = make_model(rows, output="class", fusion=fusion)
    answers = model.eval().scored_answers(batch, tokenizer)
    chances = model(**batch).logits.softmax(-1).amax(-1)
    assert [answer.probability for answer in answers] == pytest.approx(chances.tolist(), abs=1e-5)
    for answer in answers:
        assert {name for name, _ in answer.best} == {"7", "9"} and answer.best[0] == (
            answer.prediction,
            answer.probability,
        )
        assert sum(chance for _, chance in answer.best) == pytest.approx(1)


@pytest.mark.parametrize("fusion", ["attention", "logit"])  # the second reads each modality by itself
@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("how", [{}, {"num_beams": 3}, {"do_sample": True}, {"repetition_penalty": 2.0}], ids=str)
def test_a_text_is_as_probable_as_its_tokens_together(
    rows: Any, make_model: Callable[..., Any], tokenizer: Any, temperature: float, fusion: Any, how: Any
) -> None:
    """Of tokens that the same model is given as the label (teacher forcing), which is another way through the code."""
    model, batch = make_model(rows, output="text", fusion=fusion, generation=GenerationSettings(**how))
    batch = make_collator(model, tokenizer, FEATURES)(rows)  # with seeds, where texts are drawn
    with torch.no_grad():  # an end of sequence that comes sometimes, and texts of several tokens
        model.get_output_embeddings().weight[:40] *= 8
        model.get_output_embeddings().weight[tokenizer.eos_token_id] *= 4
    model = with_temperature(model, temperature).eval()
    answers = model.scored_answers(batch, tokenizer)
    asked, readings = model._asked(batch, tokenizer)
    ids = asked.model.llm.generate(
        inputs_embeds=asked.embeddings_BSD,
        attention_mask=asked.mask_BS.long(),
        do_sample=False,
        num_beams=how.get("num_beams", 1),
        length_penalty=0.0,
        repetition_penalty=how.get("repetition_penalty", 1.0),
        max_new_tokens=model.config.max_new_tokens,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    ids = ids if readings is None else ids[readings.first_B]
    ended = (ids == tokenizer.eos_token_id).cumsum(1) - (ids == tokenizer.eos_token_id).long() > 0
    targets = ids.masked_fill(ended, -100)
    logits = model(**{**batch, "labels": targets}).logits / temperature
    lost = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    expected = (-lost.reshape(targets.shape).sum(1)).exp()
    assert [answer.probability for answer in answers] == pytest.approx(expected.tolist(), rel=1e-4)
    assert len({round(answer.probability, 6) for answer in answers}) > 1


def sampled(model: FusionModel, batch: dict[str, Any], count: int) -> list[str]:
    """Labels for so many batches of the same rows, drawn from what the model says: so it is calibrated as it is."""
    with torch.inference_mode():
        chances = model(**batch).logits.softmax(-1)
    drawn = torch.multinomial(chances, count, replacement=True, generator=torch.Generator().manual_seed(0))
    return ["79"[number] for number in drawn.T.flatten().tolist()]


def test_who_is_too_sure_by_a_factor_gets_it_as_temperature(
    rows: Any, make_model: Callable[..., Any], tmp_path: Path, tokenizer: Any
) -> None:
    model, batch = make_model(rows, output="class")
    model.eval()
    with torch.no_grad():
        model.head.linear.weight *= 10
    rows_100 = [batch] * 100, sampled(model, batch, 100), tokenizer
    calibrate(model, *rows_100)
    honest = model.output.temperature
    assert honest == pytest.approx(1, abs=0.25) and model.config.fitted["calibration_rows"] == 700
    with torch.no_grad():
        model.head.linear.weight *= 3
        model.head.linear.bias *= 3
    calibrate(model, *rows_100)
    assert model.output.temperature == pytest.approx(3 * honest, rel=0.01)
    model.save_pretrained(tmp_path)
    loaded = FusionModel.from_pretrained(tmp_path).eval()
    assert loaded.scored_answers(batch, tokenizer) == model.scored_answers(batch, tokenizer)
    assert json.loads((tmp_path / "config.json").read_text())["fitted"]["classes"] == ["7", "9"]


@pytest.mark.parametrize(("fusion", "factor"), [("attention", 20), ("logit", 60)])
def test_a_text_is_calibrated_by_how_often_the_whole_is_right(
    rows: Any, make_model: Callable[..., Any], tokenizer: Any, fusion: Any, factor: float
) -> None:
    model, batch = make_model(rows, output="text", fusion=fusion)
    with torch.no_grad():  # sure of what it says, and right in two of three
        model.get_output_embeddings().weight *= factor
    said = model.eval().answer(batch, tokenizer)
    labels = [label for n in range(30) for label in (said if n % 3 else ["never said"] * len(said))]
    before = ECE.value(labels, model.scored_answers(batch, tokenizer) * 30)
    calibrate(model, [batch] * 30, labels, tokenizer)
    answers = model.scored_answers(batch, tokenizer)
    after = ECE.value(labels, answers * 30)
    assert [answer.prediction for answer in answers] == said and after < before
    assert np.mean([answer.probability for answer in answers]) == pytest.approx(2 / 3, abs=0.12)


def test_without_a_label_that_it_knows_nothing_is_calibrated(
    rows: Any, make_model: Callable[..., Any], tokenizer: Any
) -> None:
    model, batch = make_model(rows, output="class")
    calibrate(model.eval(), [batch], ["never seen"] * len(rows), tokenizer)
    assert model.output.temperature == 1.0 and "temperature" not in model.config.fitted
    calibrate(model, [batch], ["7"] * len(rows), tokenizer)
    assert TEMPERATURES[0] <= model.output.temperature <= TEMPERATURES[-1]


def test_an_answer_below_the_threshold_is_withheld_and_says_so(logged: Path) -> None:
    served = {}
    for below in (0.0, 1.0):
        model = ServedModel()
        config = {"abstain_below": below, "best": 1}
        model.load_context(SimpleNamespace(artifacts={"bundle": str(bundle_of(logged))}, model_config=config))
        served[below] = model.predict(None, pd.DataFrame([{"text": "What do you see?"}])).to_dict("records")[0]
    given, withheld = served[0.0], served[1.0]
    assert isinstance(given["prediction"], str) and given["abstained"] is False and len(given["best"]) == 1
    assert withheld["prediction"] is None and withheld["abstained"] is True
    assert withheld["probability"] == given["probability"] < 1 and withheld["best"] == given["best"]
    unknown = Answer("7").to_json(0.9)
    assert unknown == {"prediction": "7", "probability": None, "abstained": False, "best": []}


def test_a_threshold_trains_nothing_anew() -> None:
    def fingerprint(model: ModelSettings) -> str:
        return plan_runs(model, TrainingSettings(), FeatureSettings(), ["text", "image"], "d")[0].fingerprint

    assert fingerprint(ModelSettings()) == fingerprint(replace(ModelSettings(), abstain_below=0.7))


def test_a_model_that_diverged_has_no_probability(rows: Any, make_model: Callable[..., Any], tokenizer: Any) -> None:
    model, batch = make_model(rows, output="class")
    with torch.no_grad():
        model.head.linear.bias.fill_(float("nan"))
    for answer in model.eval().scored_answers(batch, tokenizer):
        assert answer.probability is None and answer.best == ()
        json.dumps(answer.to_json(), allow_nan=False)
    calibrate(model, [batch], ["7"] * len(rows), tokenizer)
    assert model.output.temperature == 1.0 and np.isfinite(TEMPERATURES).all()
