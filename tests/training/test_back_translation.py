"""Back-translation by tiny random models: what is stored of a text, what names it, and what training draws of it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, GenerationConfig, T5Config, T5ForConditionalGeneration

from training.back_translation import BackTranslation
from training.features import FeatureSettings
from training.featurizers.tokens import OTHERS
from training.language import CleanText
from training.processor import Processor
from training.rewriting import TextAugmenter
from training.settings import MediaLimits, TextAugmentation, TrainingSettings
from training.tokenizer import fit_tokenizer

TEXTS = ["a cat", "it is"]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two T5 models of random weights, which write five to nine tokens, with the files of a tokenizer."""
    folders = tuple(tmp_path_factory.mktemp(name) for name in ("there", "back"))
    for seed, folder in enumerate(folders):
        tokenizer = fit_tokenizer(["the small big cat and a dog that is it"] * 3, 300)
        torch.manual_seed(seed)
        config = T5Config(vocab_size=300, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, pad_token_id=0)
        config.decoder_start_token_id, config.eos_token_id = tokenizer.pad_token_id, tokenizer.eos_token_id
        model = T5ForConditionalGeneration(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter)
        model.generation_config = GenerationConfig(
            decoder_start_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            min_new_tokens=5,
            max_length=9,
        )
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folders  # type: ignore[return-value]


def features_of(pair: tuple[Path, Path], **options: Any) -> FeatureSettings:
    return FeatureSettings(text={"back_translation": {"there": str(pair[0]), "back": str(pair[1]), **options}})


def content(text: str) -> CleanText:
    return CleanText(text, len(text), "auto", ())


def stored(row: dict[str, Any]) -> list[str]:
    return json.loads(row[OTHERS].tobytes())


@pytest.mark.slow
def test_what_is_stored_is_what_the_models_say_of_each_text_alone(pair) -> None:
    featurizer = features_of(pair, variants=2, before_there="a ").featurizer("text")
    rows = featurizer.featurize_all([content(text) for text in TEXTS])
    models = [AutoModelForSeq2SeqLM.from_pretrained(folder).eval() for folder in pair]
    tokenizers = [AutoTokenizer.from_pretrained(folder) for folder in pair]
    for text, row in zip(TEXTS, rows, strict=True):
        said = [f"a {text}"]
        for n, count in enumerate((2, 1)):
            asked, said = said, []
            for one in asked:
                ids = tokenizers[n](one, return_tensors="pt").input_ids
                most = {"max_new_tokens": 2 * ids.shape[1] + 16}
                written = models[n].generate(input_ids=ids, num_beams=4, num_return_sequences=count, **most)
                said += [words.strip() for words in tokenizers[n].batch_decode(written, skip_special_tokens=True)]
        assert stored(row) == [one for one in dict.fromkeys(said) if one and one != text]
        assert stored(featurizer.featurize(content(text))) == stored(row), "whatever stands beside it"
        assert row["input_ids"].tolist() == list(text.encode())
    assert sum(len(stored(row)) for row in rows) > 1
    assert stored(featurizer.featurize(content("cat " * 600))) == [], "which is too long for the models"


def test_a_text_is_named_by_the_models_content_and_others_are_as_they_were(pair, tmp_path: Path) -> None:
    def key(features: FeatureSettings) -> str:
        return Processor(features, MediaLimits()).fingerprint("text")

    with_pair = features_of(pair)
    assert key(FeatureSettings()) != key(with_pair) != key(features_of(pair, variants=1))
    assert key(with_pair) != key(features_of(pair[::-1]))
    moved = []
    for folder in pair:
        moved.append(tmp_path / folder.name)
        moved[-1].mkdir()
        for file in folder.iterdir():
            (moved[-1] / file.name).write_bytes(file.read_bytes())
    assert key(features_of((moved[0], moved[1]))) == key(with_pair)
    short = features_of((Path("there"), Path("back")))
    found = short.located(lambda name: str(tmp_path / f"{name}0"))
    assert found.options("text").back_translation == BackTranslation(
        there=str(tmp_path / "there0"), back=str(tmp_path / "back0")
    )


def test_a_served_model_translates_nothing(pair, tmp_path: Path) -> None:
    Processor(features_of(pair), MediaLimits()).save_pretrained(tmp_path)
    served = Processor.from_pretrained(tmp_path)
    assert served.features == FeatureSettings()
    assert set(served.featurize("text", content("a dog"))) == {"text", "input_ids"}


def test_training_draws_from_what_is_stored(pair) -> None:
    featurizer = features_of(pair).featurizer("text")
    augmenter = featurizer.augmenter(TextAugmentation(back_translation=0.5), ())
    columns = {"text": "a dog", OTHERS: np.frombuffer(b'["one dog", "dogs"]', np.uint8)}
    said = [augmenter.rewritten(columns, np.random.default_rng(seed)) for seed in range(200)]
    assert {*said} == {"a dog", "one dog", "dogs"} and 70 < said.count("a dog") < 130
    assert augmenter(columns, np.random.default_rng(0)).tolist() == list(said[0].encode())
    nothing = {"text": "a dog", OTHERS: np.frombuffer(b"[]", np.uint8)}
    assert augmenter.rewritten(nothing, np.random.default_rng(1)) == "a dog"


def test_what_cannot_be_is_refused(pair, tmp_path: Path) -> None:
    words = r"back_translation is 0\.5, expected 0 unless features\.text\.back_translation names two models"
    with pytest.raises(ValueError, match=words):
        TextAugmenter(TextAugmentation(back_translation=0.5), FeatureSettings().featurizer("text"))
    with pytest.raises(ValueError, match=r"back_translation.back is '', expected a translation model"):
        FeatureSettings(text={"back_translation": {"there": "x"}})
    with pytest.raises(ValueError, match=r"augmentation.text: back_translation is 2.0, expected 0 to 1"):
        TrainingSettings(augmentation={"text": {"back_translation": 2}})
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="is no translation model that can be loaded"):
        features_of((tmp_path, pair[1])).featurizer("text").prepare()
