"""How a text is written: beams and their probabilities, and draws that are the same for the same row."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.conftest import FEATURES, save_bundle
from training.collator import make_collator
from training.sampling import SampledModel
from training.score import Answerer
from training.settings import GenerationSettings

DRAWN = GenerationSettings(do_sample=True, temperature=10.0)


@pytest.fixture
def sure(rows: Any, make_model: Callable[..., Any], tokenizer: Any) -> Callable[..., Any]:
    """Models that say some tokens more often than others, and now and then the end of sequence."""

    def make(**settings: Any) -> tuple[Any, dict[str, Any]]:
        model, batch = make_model(rows, output="text", **settings)
        with torch.no_grad():
            model.get_output_embeddings().weight[:40] *= 8
            model.get_output_embeddings().weight[tokenizer.eos_token_id] *= 4
        return model.eval(), batch

    return make


@pytest.mark.parametrize("fusion", ["attention", "logit"])  # the second reads each modality by itself
def test_beams_find_the_most_probable_texts(sure: Callable[..., Any], tokenizer: Any, fusion: str) -> None:
    """Of a single token it is known which they are."""
    model, batch = sure(fusion=fusion, generation=GenerationSettings(num_beams=5), max_new_tokens=1)
    chances, ids = model(**batch).logits[:, 0].softmax(-1).topk(5)
    for answer, its_chances, its_ids in zip(model.scored_answers(batch, tokenizer), chances, ids, strict=True):
        texts: dict[str, float] = {}
        for number, chance in zip(its_ids.tolist(), its_chances.tolist(), strict=True):
            text = tokenizer.decode([number], skip_special_tokens=True).strip()
            texts[text] = texts.get(text, 0.0) + chance
        assert dict(answer.best) == pytest.approx(texts, rel=1e-4)
        assert (answer.prediction, answer.probability) == answer.best[0] and answer.prediction == next(iter(texts))


def test_more_beams_find_more_probable_texts(sure: Callable[..., Any], tokenizer: Any) -> None:
    found = []
    for beams in (1, 6):
        model, batch = sure(generation=GenerationSettings(num_beams=beams), max_new_tokens=4)
        found.append(sum(answer.probability for answer in model.scored_answers(batch, tokenizer)))
    assert found[1] > found[0]


def test_a_draw_is_the_rows_own(sure: Callable[..., Any], rows: Any, tokenizer: Any) -> None:
    def answers(rows: list[Any], **settings: Any) -> list[str]:
        model, _ = sure(**settings)
        return model.answer(make_collator(model, tokenizer, FEATURES)(rows), tokenizer)

    for fusion in ("attention", "logit"):
        together = answers(rows, fusion=fusion, generation=DRAWN)
        alone = [answers([row | {"sample_id": "other"}], fusion=fusion, generation=DRAWN)[0] for row in rows]
        assert alone == together != answers(rows, fusion=fusion)
    assert answers(rows, generation=GenerationSettings(do_sample=True, top_k=1)) == answers(rows)


@pytest.mark.parametrize("limits", [{}, {"top_k": 3}, {"top_p": 0.5}], ids=str)
def test_draws_are_as_frequent_as_they_are_probable(
    sure: Callable[..., Any], tokenizer: Any, limits: dict[str, Any]
) -> None:
    how = GenerationSettings(do_sample=True, temperature=2.0, **limits)
    model, batch = sure(generation=how, max_new_tokens=1)
    chances = (model(**batch).logits[0, 0] / how.temperature).softmax(-1).sort(descending=True)
    kept = (chances.values.cumsum(0) - chances.values < how.top_p) | (how.top_p == 1)
    kept[how.top_k or len(kept) :] = False
    expected = (chances.values * kept / (chances.values * kept).sum()).gather(0, chances.indices.argsort())
    asked, _ = model._asked(batch, tokenizer)
    times = 4000
    with torch.inference_mode():
        ids = SampledModel(model, torch.arange(times)).llm.generate(
            inputs_embeds=asked.embeddings_BSD[:1].expand(times, -1, -1),
            attention_mask=asked.mask_BS[:1].long().expand(times, -1),
            do_sample=False,
            max_new_tokens=1,
            pad_token_id=tokenizer.pad_token_id,
        )
    drawn = ids[:, 0].bincount(minlength=len(expected)) / times
    assert (drawn - expected).abs().max() < 5 * (0.25 / times) ** 0.5
    assert (drawn[expected == 0] == 0).all() and bool(kept.float().mean() < 0.5) == bool(limits)


@pytest.mark.parametrize("how", [GenerationSettings(num_beams=3), DRAWN], ids=["beams", "drawn"])
def test_a_saved_model_writes_in_the_same_way(how: GenerationSettings, rows: Any, tmp_path: Path) -> None:
    answerer = Answerer(save_bundle(tmp_path, output="text", generation=how))
    model, tokenizer = answerer._model, answerer._tokenizer
    assert answerer(rows) == model.scored_answers(make_collator(model, tokenizer, FEATURES)(rows), tokenizer)
    most = max(len(answer.best) for answer in answerer(rows))  # beams may write the same words
    assert most in ((2, 3) if how.num_beams > 1 else (1,))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_beams": 0}, "num_beams is 0, expected at least 1"),
        ({"num_beams": 2, "do_sample": True}, "num_beams is 2, expected 1 where do_sample draws"),
        ({"temperature": 0.5}, r"temperature is 0.5, expected 1 where nothing is drawn \(do_sample: true\)"),
        ({"do_sample": True, "top_p": 0}, "top_p is 0, expected above 0, up to 1"),
        ({"length_penalty": 1}, "length_penalty is 1, expected 0 without beams"),
    ],
)
def test_settings_that_do_nothing_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        GenerationSettings(**settings)
