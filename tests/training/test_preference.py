"""Learning from preferences: the formula, what a log-probability is, and that what people prefer holds afterwards."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from tests.training.tiny_vectors import FEATURES
from training.collator import make_collator
from training.family import Choice
from training.preference import learn_preferences, log_probabilities, preference_loss
from training.preference_settings import PreferenceSettings, check_preference
from training.settings import ModelSettings, TrainingSettings, complete
from training.tokenizer import fit_tokenizer
from training.train import TrainingTask, fit, predict

TOKENIZER = fit_tokenizer(["high", "low"], 300)
BETA = 0.3


def model_settings(output):
    settings = ModelSettings(width=16, layers=1, heads=2, tokens=1, output=Choice(output), max_new_tokens=4)
    return complete(settings, FEATURES.forms)


def test_the_loss_is_that_of_the_paper():
    values = np.random.default_rng(0).normal(-2, 1, (4, 6))
    wanted = []
    for chosen, rejected, was_chosen, was_rejected in values.T:  # Rafailov et al. 2023, equation 7
        margin = BETA * math.log(math.exp(chosen) / math.exp(was_chosen))
        margin -= BETA * math.log(math.exp(rejected) / math.exp(was_rejected))
        wanted.append(-math.log(1 / (1 + math.exp(-margin))))
    assert preference_loss(*torch.tensor(values), BETA).item() == pytest.approx(np.mean(wanted), rel=1e-9)


@pytest.mark.parametrize("output", ["class", "text"])
def test_a_log_probability_is_that_of_the_whole_answer(vectors, output, tmp_path):
    task = TrainingTask(
        model=model_settings(output),
        training=TrainingSettings(epochs=1, evaluations=0),
        features=FEATURES,
        train=vectors,
        validation=vectors.take([]),
        tokenizer=TOKENIZER,
    )
    network = fit(task, tmp_path).model
    plain = make_collator(network, TOKENIZER, FEATURES)
    collate = replace(plain, targets=partial(network.output.targets, tokenizer=TOKENIZER), seeds=False)
    rejected = [{"low": "high", "high": "low"}[label] for label in vectors.labels]
    said = log_probabilities(network, collate, vectors, rejected, [0, 3, 5]).exp()
    batch = plain([vectors[n] for n in (0, 3, 5)])
    for n, answer in enumerate(network.scored_answers(batch, TOKENIZER)):
        labels = (vectors.labels[(0, 3, 5)[n]], rejected[(0, 3, 5)[n]])
        for column, label in enumerate(labels):
            if answer.prediction == label and network.output.temperature == 1.0:
                assert said[column, n].item() == pytest.approx(answer.probability, rel=1e-4)
    if output == "class":
        assert torch.allclose(said.sum(0), torch.ones(3), atol=1e-5), "there are two classes"
    else:
        tokens = network.output.targets(["low"], TOKENIZER)
        logits = network(**collate([vectors[0] | {"label": "low"}])).logits.float()
        chances = logits[0].softmax(-1)[torch.arange(tokens.shape[1]), tokens[0]]
        assert said[0, 0].item() == pytest.approx(chances.prod().item(), rel=1e-4)


@pytest.mark.parametrize("output", ["class", pytest.param("text", marks=pytest.mark.slow)])
def test_what_people_prefer_holds_and_the_other_answers_stay(vectors, output, tmp_path):
    """Of samples without a picture, which are all low, people say that they are high."""
    training = TrainingSettings(epochs=30, batch_size=8, learning_rate=3e-3, evaluations=0)
    task = TrainingTask(
        model=replace(model_settings(output), modality_dropout=0.0, linear_share=0.0),
        training=training,
        features=FEATURES,
        train=vectors,
        validation=vectors.take([]),
        tokenizer=TOKENIZER,
    )
    network = fit(task, tmp_path).model
    plain = make_collator(network, TOKENIZER, FEATURES)
    collate = replace(plain, targets=partial(network.output.targets, tokenizer=TOKENIZER), seeds=False)
    disputed = [n for n in range(len(vectors)) if vectors[n]["image"] is None]
    others = [n for n in range(len(vectors)) if n not in disputed]
    chosen = vectors.take(disputed)
    index = chosen.index.set_column(1, "label", [["high"] * len(disputed)])
    pairs, rejected = type(vectors)(index, vectors.caches), ["low"] * len(disputed)
    wanted = [vectors.labels[n] for n in others]

    def right():
        told = predict(network, TOKENIZER, vectors.take(others), FEATURES)
        return np.mean([one == label for one, label in zip(told, wanted, strict=True)])

    before = right()
    settings = PreferenceSettings(steps=60)
    kept = vectors.take(others)
    found = learn_preferences(network, collate, pairs, rejected, kept, settings, 3e-3, lambda words: None)
    assert found.pairs == len(disputed) and found.held_before == 0 and before >= 0.95
    assert found.held == len(disputed), "what people prefer is now more probable"
    assert right() >= before - 0.05


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"beta": 0}, "beta is 0, expected over 0"),
        ({"least": 0}, "least is 0, expected 1 or more"),
        ({"answers": -1}, "answers is -1, expected 0 or more"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        PreferenceSettings(**settings)


def test_answers_that_are_no_string_cannot_be_preferred():
    from training.catalog import OUTPUTS

    with pytest.raises(ValueError, match="expected an output of class or text"):
        check_preference(OUTPUTS.make(Choice("number"), {}), "number")
