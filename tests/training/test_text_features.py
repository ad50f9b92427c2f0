"""Features of a text beside its tokens: term counts, weighted by the training rows, and phonemes."""

import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
import torch
from sklearn.feature_extraction.text import TfidfTransformer

from training.cache import FeatureCache
from training.data import SampleDataset
from training.encoders.tfidf import TfidfEncoder
from training.features import FeatureSettings
from training.featurizers.base import FeatureShape
from training.layers import ModelShape
from training.media import MediaError
from training.model import FusionModel
from training.processor import Processor
from training.schema import DATASET, features_table
from training.settings import MediaLimits, ModelSettings, TrainingSettings
from training.tokenizer import fit_tokenizer
from training.train import TrainingTask, new_model

TEXTS = ["The cat saw a cat", "a red lamp", "the lamp saw the cat", "Who is it?"]


def processor(section: object) -> Processor:
    return Processor(FeatureSettings(text=section), MediaLimits())


def test_a_text_is_the_counts_of_its_content_words() -> None:
    made = processor({"kind": "tfidf", "columns": 1000})
    terms = made.row(text="The cat saw a cat; 猫 saw 猫")["text"]["terms"]
    assert sorted(terms[:, 1].tolist()) == [2, 2, 2] and (np.diff(terms[:, 0]) > 0).all()
    # The same word of another text is the same column, the next run's too: it is what it was when this was written.
    assert made.row(text="Cat!")["text"]["terms"].tolist() == [[CAT, 1]]
    assert made.row(text="What is this?")["text"]["terms"].tolist() == [[0, 1]], "stop words only"
    pairs = processor({"kind": "tfidf", "columns": 1000, "ngrams": 2}).row(text="lamp cat")["text"]["terms"]
    assert pairs[:, 1].tolist() == [1, 1, 1] and CAT in pairs[:, 0]


CAT = 769


def test_counts_weigh_what_scikit_learn_weighs_them() -> None:
    made = processor({"kind": "tfidf", "columns": 64})
    featurizer = made.featurizers["text"]
    rows = [made.row(text=text)["text"]["terms"] for text in TEXTS]
    dense = np.zeros((len(rows), 64))
    for n, row in enumerate(rows):
        dense[n, row[:, 0]] = row[:, 1]
    train = [0, 1, 0]  # a text that two rows have counts twice
    expected = TfidfTransformer().fit(dense[train]).transform(dense).toarray()
    torch.manual_seed(0)
    encoder = TfidfEncoder(FeatureShape("counts", 64), ModelShape(8, 2, 2))
    encoder.fit(rows[n] for n in train)
    tokens, mask = encoder(*featurizer.batch(rows))
    by_hand = torch.from_numpy(expected).float() @ encoder.embed.weight
    torch.testing.assert_close(tokens.flatten(1), encoder.projection(by_hand))
    assert mask.all() and tokens.shape == (len(TEXTS), 2, 8)


def test_a_model_weighs_terms_by_its_training_rows_alone_and_carries_the_weights(tmp_path: Path) -> None:
    made = processor({"kind": "tfidf", "columns": 64})
    dtypes = made.featurizers["text"].tensors
    table = features_table(
        "text", dtypes, [{"id": str(n), "fingerprint": "f"} | made.row(text=t)["text"] for n, t in enumerate(TEXTS)]
    )
    cache = FeatureCache(tmp_path, "text", "f", {"text": None, **dtypes})
    cache.add(ds.dataset(table), [str(n) for n in range(len(TEXTS))])
    ids = ["0", "1", "0", None, "2", "3"]
    index = [{"sample_id": str(n), "label": "yes" if n % 2 else "no", "text_id": i} for n, i in enumerate(ids)]
    rows = SampleDataset(pa.Table.from_pylist(index, DATASET), {"text": cache})
    task = TrainingTask(
        model=ModelSettings(width=16, heads=2, layers=1, output="class"),  # type: ignore[arg-type]
        training=TrainingSettings(),
        features=made.features,
        train=rows.take(range(4)),
        validation=rows.take(range(4, 6)),
        tokenizer=fit_tokenizer(TEXTS, 300),
    )
    model = new_model(task)
    encoder = TfidfEncoder(FeatureShape("counts", 64), ModelShape(8, 2, 2))
    encoder.fit(made.row(text=TEXTS[n])["text"]["terms"] for n in (0, 1, 0))
    assert encoder.idf.unique().numel() > 2
    torch.testing.assert_close(model.encoders["text"].idf, encoder.idf)
    model.save_pretrained(tmp_path / "model")
    loaded = FusionModel.from_pretrained(tmp_path / "model")
    torch.testing.assert_close(loaded.encoders["text"].idf, encoder.idf)


PHONEMES = {
    "en": ("Hello, world!", "həlˈəʊ wˈɜːld"),
    "de": ("Das ist schön", "das ɪst ʃˈøːn"),
    "zh": ("三辆车", "sˈa5n lˈiɑ5ŋ ts.hˈo-5"),
}


@pytest.mark.parametrize("language", PHONEMES)
def test_a_text_is_said_in_its_language(language: str) -> None:
    from training.featurizers.phonemes import _IDS

    text, said = PHONEMES[language]
    made = processor({"kind": "phonemes", "language": language})
    ids = made.row(text=text)["text"]["phonemes"]
    letters = {n: character for character, n in _IDS.items()}
    assert "".join(letters[n] for n in ids.tolist()) == said
    assert made.featurizers["text"].shape().width > max(letters)


def test_threads_may_say_texts_of_several_languages_at_once() -> None:
    wrong: list[str] = []

    def say(language: str) -> None:
        text, _ = PHONEMES[language]
        made = processor({"kind": "phonemes", "language": language})
        expected = made.row(text=text)["text"]["phonemes"]
        for _ in range(200):
            if not np.array_equal(made.row(text=text)["text"]["phonemes"], expected):
                wrong.append(language)

    threads = [threading.Thread(target=say, args=[language]) for language in PHONEMES]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize(
    ("section", "text", "reason", "words"),
    [
        ({"language": "xx"}, "Hello", "unsupported", "no voice for 'xx': set features.text.language"),
        ({}, "…", "empty", "nothing to say"),
    ],
)
def test_what_cannot_be_said_is_refused(section: dict[str, str], text: str, reason: str, words: str) -> None:
    with pytest.raises(MediaError, match=words) as refused:
        processor({"kind": "phonemes", **section}).row(text=text)
    assert refused.value.reason == reason
