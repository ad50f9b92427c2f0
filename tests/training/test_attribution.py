"""Maps point at what decides: a model is trained on pictures and texts whose truth is planted, what its maps point at
is deleted, and the answer suffers more than where as much is deleted elsewhere."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.attribution import GRADIENTS, OCCLUSION, Explainer
from training.cache import FeatureCache, needed_columns
from training.collator import make_collator
from training.data import SampleDataset
from training.family import Choice
from training.features import FeatureSettings
from training.modalities.image import ImageModality
from training.modalities.speech import SpeechModality
from training.modalities.text import TextModality
from training.processor import Processor
from training.schema import DATASET, features_table
from training.settings import MediaLimits, ModelSettings, TextCleaning, TrainingSettings, complete
from training.train import TrainingTask, fit, make_tokenizer

FEATURES = FeatureSettings(image={"size": 12, "color": "grey"})
ROWS, CORNER = 192, 4  # pixels of the side of the corner that decides
FILLERS = ["we", "saw", "it", "here", "today", "and", "then", "again", "there", "by", "the", "old", "house"]


def planted(n: int, random: np.random.Generator) -> tuple[str, np.ndarray, str]:
    """Text, pixels and label: the label is whether the upper left corner is bright, and which of two words there is."""
    is_bright, word = n % 2 == 0, ("red", "blue")[n // 2 % 2]
    pixels = random.integers(0, 256, (1, 12, 12)).astype(np.uint8)
    pixels[:, :CORNER, :CORNER] = 230 if is_bright else 25
    words = random.permutation(FILLERS)[:5].tolist()
    words.insert(int(random.integers(6)), word)
    return " ".join(words), pixels, f"{'bright' if is_bright else 'dark'} {word}"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Explainer, list[dict[str, Any]]]:
    random, root = np.random.default_rng(0), tmp_path_factory.mktemp("cache")
    made = [planted(n, random) for n in range(ROWS)]
    caches = {m: FeatureCache(root, m, "f", needed_columns(m, FEATURES)) for m in ("text", "image")}
    for modality, cache in caches.items():
        dtypes = {name: dtype for name, dtype in needed_columns(modality, FEATURES).items() if dtype is not None}
        entries = []
        for n, (text, pixels, _) in enumerate(made):
            own = {"text": text, "input_ids": np.frombuffer(text.encode(), np.uint8)}
            entries.append(
                {"id": f"{modality}{n}", "fingerprint": "f", **(own if modality == "text" else {"pixels": pixels})}
            )
        cache.add(ds.dataset(features_table(modality, dtypes, entries)), [entry["id"] for entry in entries])
    index = [
        {"sample_id": f"s{n}", "label": row[2], "text_id": f"text{n}", "image_id": f"image{n}"}
        for n, row in enumerate(made)
    ]
    rows = SampleDataset(pa.Table.from_pylist(index, DATASET), caches)
    model = ModelSettings(width=16, layers=1, heads=2, tokens=2, modality_dropout=0.0, output=Choice("class"))
    model = complete(model, {m: FEATURES.forms[m] for m in ("text", "image")})
    training = TrainingSettings(epochs=15, batch_size=32, learning_rate=5e-3, evaluations=0, seed=0)
    tokenizer = make_tokenizer(rows, model, training)
    task = TrainingTask(
        model=model, training=training, features=FEATURES, train=rows, validation=rows.take([]), tokenizer=tokenizer
    )
    network = fit(task, tmp_path_factory.mktemp("fit")).model
    return Explainer(network, make_collator(network, tokenizer, FEATURES), Processor(FEATURES, MediaLimits())), [
        rows[n] for n in range(6)
    ]


@pytest.mark.slow
def test_what_maps_point_at_decides(trained: Any) -> None:
    explain, rows = trained
    random, lost, elsewhere, hits = np.random.default_rng(1), [], [], 0
    for row in rows:
        content = explain.processor.decode("text", row["text"]["text"].encode())
        text, image = explain(row, {"text": content, "image": None}, row["label"])
        assert (image.how, text.how) == (GRADIENTS, OCCLUSION) and image.values.shape == (12, 12)
        hits += text.pieces[int(text.values.argmax())] in ("red", "blue")
        before = explain.log_probability(row, row["label"])
        largest = np.argsort(-image.values, axis=None)[: CORNER**2]
        for gone, losses in ((largest, lost), (random.permutation(144)[: CORNER**2], elsewhere)):
            pixels = row["image"]["pixels"].copy()
            pixels.reshape(-1)[gone] = round(float(pixels.mean()))
            without = {**row, "image": {**row["image"], "pixels": pixels}}
            losses.append(before - explain.log_probability(without, row["label"]))
    assert hits >= 5, "of 6 texts the word that decides is the one that counts most"
    assert np.mean(lost) > 5 * max(0.01, np.mean(elsewhere))


@pytest.mark.slow
def test_gradients_add_up_to_what_the_picture_gives(trained: Any) -> None:
    explain, rows = trained
    (image,) = explain(rows[0], {"image": None}, rows[0]["label"])
    grey = np.full_like(rows[0]["image"]["pixels"], round(float(rows[0]["image"]["pixels"].mean())))
    without = {**rows[0], "image": {**rows[0]["image"], "pixels": grey}}
    gained = explain.log_probability(rows[0], rows[0]["label"]) - explain.log_probability(without, rows[0]["label"])
    assert image.values.sum() == pytest.approx(gained, abs=0.1 * abs(gained) + 0.05)


@given(st.text("ab ,.你好", min_size=1, max_size=30))
def test_pieces_of_a_text_are_its_words_and_can_be_left_out(text: str) -> None:
    kind = TextModality(TextCleaning())
    if not text.strip():
        return
    content = kind.decode(text.encode(), MediaLimits())
    pieces = kind.pieces(content)
    whole = kind.keeping(content, np.ones(len(pieces), bool))
    assert whole.text == content.text
    left = kind.keeping(content, np.zeros(len(pieces), bool))
    assert left is None or not any(character.isalpha() for character in left.text)


def test_pieces_of_media_are_covered_where_they_lie() -> None:
    image, speech = ImageModality(), SpeechModality()
    picture = image.decode(image.example(), MediaLimits())
    kept = np.ones(len(image.pieces(picture)), bool)
    assert (image.keeping(picture, kept).array == picture.array).all()
    kept[0] = False
    changed = (image.keeping(picture, kept).array != picture.array).any(-1)
    assert changed[:4, :4].all() and changed.sum() == 16, "32 pixels in 8 pieces"
    sound = speech.decode(speech.example(), MediaLimits())
    kept = np.ones(len(speech.pieces(sound)), bool)
    kept[-1] = False
    silent = speech.keeping(sound, kept).waveform
    assert (
        not silent[-sound.frames // 24 + 1 :].any()
        and (silent[: sound.frames // 2] == sound.waveform[: sound.frames // 2]).all()
    )
