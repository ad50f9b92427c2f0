"""Texts rewritten by rule: what each setting does, and that nothing else moves."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.training.conftest import FEATURES, MODEL
from training.building import build_model
from training.collator import make_collator
from training.features import FeatureSettings
from training.language import CleanText
from training.rewriting import TextAugmenter
from training.settings import TextAugmentation, TrainingSettings, complete, located
from training.spec import training_identity
from training.train import augmenters

ENGLISH = "The small cat doesn't see 3.5 big dogs, or does it?"
CHINESE = "这只小猫没有看见那条大狗。"


def rewritten(text: str, seed: int = 0, **settings: Any) -> str:
    augmenter = TextAugmenter(TextAugmentation(**settings), FEATURES.featurizer("text"))
    return augmenter.rewritten({"text": text}, np.random.default_rng(seed))


def words(text: str) -> list[str]:
    return list(CleanText(text, len(text), "auto", ()).words)


@settings(max_examples=40)
@given(st.text(max_size=60), st.integers(0, 9), st.sampled_from(["words", "characters"]))
def test_without_chances_a_text_stays_and_with_all_of_them_something_does(text, seed, units):
    assert rewritten(text, seed, units=units) == text.strip(" ")
    changed = rewritten(text, seed, units=units, delete=1.0, swap=0.5, typos=0.5)
    assert changed.strip() or not text.strip()


@pytest.mark.parametrize(("text", "units"), [(ENGLISH, "words"), (CHINESE, "words"), (CHINESE, "characters")])
def test_words_are_left_out_and_swapped_as_often_as_asked(text, units):
    parts = list(text.rstrip("。")) if units == "characters" else words(text)
    whole = "".join(parts) if text is CHINESE else None
    lengths, moved = [], 0
    for seed in range(200):
        left = rewritten(text, seed, delete=0.3, units=units)
        kept = words(left) if whole is None else None
        if kept is not None:
            lengths.append(len(kept) / len(parts))
            assert "  " not in left and [w for w in parts if w in kept] == kept
        else:
            lengths.append((len(left) - 1) / len(whole))
        swapped = rewritten(text, seed, swap=0.2, units=units)
        assert sorted(swapped) == sorted(text)
        moved += swapped != text
    assert 0.6 < np.mean(lengths) < 0.8
    assert moved > 150
    if whole is not None:
        one = min((rewritten(text, s, delete=0.999, units=units) for s in range(5)), key=len)
        assert one.rstrip("。") in parts, "the last word stays"


def test_typos_are_of_keys_that_lie_near_and_of_no_other_script():
    assert rewritten(CHINESE, typos=1.0) == CHINESE
    assert rewritten("12 34", typos=1.0) == "12 34"
    near = {"g": set("ftyhbv"), "q": set("wa"), "p": set("ol")}
    for letter, keys in near.items():
        said = {rewritten(letter.upper() * 9, seed, typos=0.1) for seed in range(300)}
        others = {c for text in said for c in text.lower()} - {letter}
        assert others == keys and all(text.isupper() for text in said)
    assert 0.1 < np.mean([rewritten("reading", s, typos=0.05) != "reading" for s in range(300)]) < 0.5


def test_synonyms_take_the_place_of_words_with_their_capital(tmp_path: Path):
    file = tmp_path / "synonyms.txt"
    file.write_text("# animals\nbig, large, huge\ncat\tkitten\n看见，看到\n", encoding="utf-8")
    said = {rewritten("Big cat, BIG dog", s, synonyms=str(file), replace=0.5) for s in range(50)}
    assert {"Large kitten, BIG dog", "Big cat, Huge dog", "Big cat, BIG dog"} <= said
    assert {rewritten(CHINESE, s, synonyms=str(file), replace=1.0) for s in range(9)} == {
        CHINESE.replace("看见", "看到")
    }
    plain = TrainingSettings(augmentation={"text": {"synonyms": "synonyms.txt"}})
    here = located(plain, lambda name: str(tmp_path / name))
    elsewhere = tmp_path / "other.txt"
    elsewhere.write_bytes(file.read_bytes())
    there = located(plain, lambda _: str(elsewhere))
    assert training_identity(here) == training_identity(there) != training_identity(TrainingSettings())
    elsewhere.write_text("big, giant\n")
    assert training_identity(here) != training_identity(there)
    elsewhere.write_text("big, giant\nalone\n")
    with pytest.raises(ValueError, match=r"other.txt, line 2: 'alone' is a single word, expected others that mean"):
        training_identity(there)
    with pytest.raises(ValueError, match=r"synonyms is 'nowhere.txt', expected a UTF-8 text file of a group a line"):
        rewritten("a", synonyms="nowhere.txt")
    with pytest.raises(ValueError, match=r"augmentation.text: delete is 2.0, expected 0 to 1"):
        TrainingSettings(augmentation={"text": {"delete": 2}})


@pytest.mark.parametrize("kind", ["llm", "small_transformer", "tfidf"])
def test_what_a_model_reads_is_keyed_by_seed_epoch_and_sample(kind: str, rows: Any, tokenizer: Any) -> None:
    """As the prompt of the language model, and as what an encoder reads."""
    features = FeatureSettings(text={"kind": "tfidf", "columns": 64}) if kind == "tfidf" else FEATURES
    model_settings = complete(replace(MODEL, encoders={"text": kind}), {"text": features.forms["text"]})
    model = build_model(model_settings, features, tokenizer, ("text",), ["7", "9"])
    given = {"text": ENGLISH, **features.featurizer("text").featurize(CleanText(ENGLISH, len(ENGLISH), "auto", ()))}
    texts = [row | {"text": given} for row in rows]
    augment = augmenters({"text": TextAugmentation(delete=0.3, typos=0.1)}, features, {})
    collator = replace(make_collator(model, tokenizer, features), augment=augment)
    names = ("prompt_ids", "prompt_mask") if kind == "llm" else ("text", "text_mask")

    def read(seed: int, epoch: int, chosen: list[dict[str, Any]]) -> list[str]:
        batch = replace(collator, seed=seed)([row | {"epoch": epoch} for row in chosen])
        return [str(values[real].tolist()) for values, real in zip(*map(batch.get, names), strict=True)]

    first = read(0, 0, texts)
    assert len(set(first)) == len(texts), "each row is changed otherwise"
    assert read(0, 0, texts[::-1]) == first[::-1], "whatever stands beside it"
    assert read(1, 0, texts)[0] != first[0] != read(0, 1, texts)[0]
    plain = replace(collator, augment={})(texts)
    assert (plain[names[0]] == plain[names[0]][0]).all()


def test_a_misspelt_prompt_is_no_longer_than_there_is_room_for(rows: Any, make_model: Any, tokenizer: Any) -> None:
    model, _ = make_model(rows)
    augment = augmenters({"text": TextAugmentation(typos=1.0)}, FEATURES, {})
    text = rows[0] | {"text": {"text": "What do you see?"}}
    collator = replace(make_collator(model, tokenizer, FEATURES), augment=augment)
    room = replace(collator, augment={})([text])["prompt_ids"].shape[1]
    assert collator([text])["prompt_ids"].shape[1] > room
    assert replace(collator, prompt_room=room)([text])["prompt_ids"].shape[1] == room
