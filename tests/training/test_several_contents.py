"""Several contents of a modality in one row: over the encoders of each form of features, and over the fusions."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from training.building import build_model
from training.catalog import ENCODERS, FUSIONS
from training.collator import Collator, make_collator
from training.features import FeatureSettings
from training.language import clean_text
from training.mixing import can_mix
from training.model import FusionModel
from training.recordings import Speech
from training.settings import ImageAugmentation, ModelSettings, TextCleaning
from training.tokenizer import fit_tokenizer
from training.train import scored_answers

MODALITIES = ("text", "image", "speech")
TOKENIZER = fit_tokenizer(["high", "low", "it is"] * 3, 300)
MEDIA = {"image": {"size": 8, "color": "grey"}, "speech": {"mels": 8, "coefficients": 4}}
VECTORS: dict[str, Any] = {m: {"kind": "vector", "width": 8} for m in ("image", "speech")}
FORMS = {"grid": ("image", MEDIA), "frames": ("speech", MEDIA), "vectors": ("image", VECTORS)}
FORMS |= {"ids": ("text", MEDIA), "counts": ("text", MEDIA | {"text": {"kind": "tfidf"}})}
# What the language model reads itself is one content, however many texts it is made of.
CASES = [(form, kind) for form in FORMS for kind in ENCODERS.names(form) if kind != "llm"]
MOST = 3


def content(modality: str, features: FeatureSettings, random: np.random.Generator) -> dict[str, Any]:
    featurizer, length = features.featurizer(modality), int(random.integers(1, 9))
    if featurizer.read == "processed":
        waveform = random.normal(size=1600 * length).astype(np.float32)
        return featurizer.featurize(Speech(waveform, 16_000, "WAV", 1, len(waveform)))
    if modality == "text":
        said = clean_text(" ".join(random.choice(["high", "low", "deep", "so"], length)), TextCleaning())
        return {"text": said.text} | featurizer.featurize(said)
    if featurizer.read == "pixels":
        shape = (3, 32, 32) if features.choice(modality).kind == "processed" else (1, 8, 8)
        return {"pixels": random.integers(0, 255, shape).astype(np.uint8)}
    return {featurizer.read: random.normal(size=(length, featurizer.shape().width)).astype(np.float32)}


def rows_of(modality: str, features: FeatureSettings, counts: list[int], seed: int = 0) -> list[dict[str, Any]]:
    """A row for each count, with so many contents, and a text, or beside texts a picture."""
    random, rows = np.random.default_rng(seed), []
    for n, count in enumerate(counts):
        contents = [content(modality, features, random) for _ in range(count)]
        row = dict.fromkeys(MODALITIES) | {"sample_id": str(n), "label": ("high", "low")[n % 2], "epoch": 0}
        row |= {"text": {"text": "it is", "input_ids": np.zeros(1, np.int32)}}
        row |= {"image": content("image", features, random)} if modality == "text" else {}
        row |= {modality: next(iter(contents), None)}
        rows.append(row | ({f"{modality}_more": contents[1:]} if count > 1 else {}))
    return rows


def make(
    features: FeatureSettings, modality: str, several: dict[str, Any], **settings: Any
) -> tuple[FusionModel, Collator]:
    torch.manual_seed(0)
    chosen: dict[str, Any] = {"output": "class", "width": 16, "layers": 1, "heads": 2, "tokens": 2} | settings
    read = ("text", "image" if modality == "text" else modality)
    model = build_model(ModelSettings(**chosen), features, TOKENIZER, read, ["high", "low"], several)
    collator = make_collator(model, TOKENIZER, features)
    return model.eval(), replace(collator, targets=partial(model.output.targets, tokenizer=TOKENIZER))


@pytest.fixture
def made(form: str, kind: str, tiny_encoder: Any) -> tuple[str, FeatureSettings, dict[str, Any]]:
    """Modality, features, and what the model reads them with."""
    modality, sections = FORMS[form]
    features, encoder = FeatureSettings(**sections), {modality: kind}
    if kind == "huggingface":
        folder: Path = tiny_encoder({"image": "vit", "speech": "whisper", "text": "bert"}[modality])
        encoder = {modality: {"kind": kind, "model": str(folder)}}
        sections = {"image": MEDIA["image"]} if modality == "text" else {}
        features = FeatureSettings(**sections).with_encoders(encoder)
    return modality, features, {"encoders": encoder}


@pytest.mark.parametrize(("form", "kind"), CASES)
def test_contents_of_all_rows_are_encoded_together_and_laid_in_their_rows(made: Any) -> None:
    modality, features, settings = made
    rows = rows_of(modality, features, [2, 0, 1, 3])
    model, collate = make(features, modality, {modality: MOST}, **settings)
    plain, one_each = make(features, modality, {}, **settings)
    shared = {name: w for name, w in model.state_dict().items() if name.partition(".")[0] not in ("fusion", "places")}
    plain.load_state_dict(shared, strict=False)
    batch, T, n = collate(rows), 2, model.config.modalities.index(modality)
    tokens, mask = model.encode(**batch)
    counts = [0 if row[modality] is None else 1 + len(row.get(f"{modality}_more", [])) for row in rows]
    assert mask[:, n].sum(1).tolist() == [T * count for count in counts]
    assert len(batch[modality]) == sum(counts), "a row of nothing costs nothing"
    for number, row in enumerate(rows):
        for place, given in enumerate([row[modality], *row.get(f"{modality}_more", [])] if row[modality] else []):
            (alone,), _ = plain.encode(**one_each([{**row, modality: given, f"{modality}_more": []}]))
            torch.testing.assert_close(tokens[number, n, place * T : (place + 1) * T], alone[n], rtol=1e-4, atol=1e-4)
    model.train()(**batch).loss.backward()
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad and modality in name]
    assert any("places" in name for name, _ in trained)
    assert not [name for name, p in trained if p.grad is None or not p.grad.abs().sum() > 0]


@pytest.mark.parametrize("fusion", FUSIONS.names())
def test_every_fusion_reads_all_of_them_in_order_and_nothing_else(fusion: str, tmp_path: Path) -> None:
    features = FeatureSettings(**MEDIA)
    model, collate = make(features, "image", {"image": MOST}, fusion=fusion)
    for parameter in model.parameters():
        if not parameter.any():  # a new decoder says nothing
            torch.nn.init.normal_(parameter, std=0.2)
    rows = rows_of("image", features, [2, 1, 0, 3])

    def said(row: dict[str, Any], beside: list[dict[str, Any]] = rows) -> torch.Tensor:
        with torch.no_grad():
            return model(**collate([row, *beside])).logits[0]

    (first, second), expected = (rows[0]["image"], rows[0]["image_more"][0]), said(rows[0])
    torch.testing.assert_close(said(rows[0], [])[None], expected[None], rtol=1e-4, atol=1e-5)
    for other in (
        rows[0] | {"image_more": []},
        rows[0] | {"image": second, "image_more": [first]},
        rows[0] | {"image_more": [rows[3]["image"]]},
        rows[0] | {"image_more": [second, second]},
    ):
        assert not torch.allclose(said(other), expected, atol=1e-5)
    hidden = replace(collate, keep=frozenset({"text"}))
    with torch.no_grad():
        bare, nothing = (model(**hidden([row])).logits for row in (rows[0], rows[2]))
    torch.testing.assert_close(bare, nothing)
    model.save_pretrained(tmp_path)
    again = FusionModel.from_pretrained(tmp_path).eval()
    batch = collate(rows)
    torch.testing.assert_close(again(**batch).logits, model(**batch).logits)


def test_a_model_that_may_have_several_starts_as_one_that_may_not() -> None:
    features = FeatureSettings(**MEDIA)
    model, _ = make(features, "image", {"image": MOST})
    assert not model.places["image"].weight.any(), "what a place says is learned"
    assert set(model.state_dict()) - set(make(features, "image", {})[0].state_dict()) == {"places.image.weight"}


def test_more_than_there_may_be_is_an_error_and_each_content_is_augmented_by_itself() -> None:
    features = FeatureSettings(**MEDIA)
    _, collate = make(features, "image", {"image": 2})
    with pytest.raises(ValueError, match=r"0 has 3, and the model takes 2 \(image: align.several\)"):
        collate(rows_of("image", features, [3]))
    rows = rows_of("image", features, [2, 1])
    rows[0]["image_more"] = [rows[0]["image"]]
    augment = features.featurizer("image").augmenter(ImageAugmentation(rotation=30), ())
    one, other, single = replace(collate, augment={"image": augment})(rows)["image"]
    assert not torch.equal(one, other)
    torch.testing.assert_close(single, replace(collate, augment={"image": augment})(rows[1:])["image"][0])


def test_several_texts_are_one_prompt_with_a_line_each() -> None:
    features = FeatureSettings(text={"max_tokens": 5}, **MEDIA)
    settings: dict[str, Any] = {"output": "text", "encoders": {"text": "llm"}}
    model, collate = make(features, "text", {"text": 3, "image": 2}, **settings)
    assert set(model.places) == {"image"} and model.config.prompt == "text"
    rows = rows_of("text", features, [2, 1, 0, 3])
    rows[0] |= {"text": {"text": "low"}, "text_more": [{"text": ""}, {"text": "it is"}]}
    batch = collate(rows)
    ids = [row[mask].tolist() for row, mask in zip(batch["prompt_ids"], batch["prompt_mask"], strict=True)]
    assert ids[0] == TOKENIZER("low\nit is")["input_ids"][:5] and ids[2] == []
    joined = "\n".join([rows[3]["text"]["text"], *(more["text"] for more in rows[3]["text_more"])])
    assert ids[3] == TOKENIZER(joined)["input_ids"][:5] and len(ids[3]) == 5, "cut as one text is"
    alone = collate([rows[0] | {"text": {"text": "low\nit is"}, "text_more": []}])
    torch.testing.assert_close(alone["prompt_ids"][0], torch.tensor(ids[0]))
    assert batch["present"].tolist() == [[True, True], [True, True], [False, True], [True, True]]


VIEWS = ["front", "left", "right"]


@pytest.mark.parametrize("fusion", FUSIONS.names())
def test_a_view_is_read_at_its_own_place_whatever_else_a_row_has(fusion: str) -> None:
    features = FeatureSettings(**MEDIA)
    model, collate = make(features, "image", {"image": VIEWS}, fusion=fusion)
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    given = rows_of("image", features, [2, 2, 1, 0])
    for row, views in zip(given, (["front", "right"], ["right", "front"], ["right"], None), strict=True):
        row["image_views"] = views
    first, swapped, one, none = given
    swapped |= {"image": first["image_more"][0], "image_more": [first["image"]]}
    one |= {"image": first["image_more"][0]}

    def said(row: dict[str, Any]) -> torch.Tensor:
        with torch.no_grad():
            return model(**collate([row, *given])).logits[0]

    torch.testing.assert_close(said(first), said(swapped), msg="the order of what is given says nothing")
    batch = collate([first, one, none])
    assert batch["image_places"].tolist() == [0, 2, 2] and batch["image_rows"].tolist() == [0, 0, 1]
    tokens, mask = model.encode(**batch)
    image = model.config.modalities.index("image")
    assert mask[0, image].tolist() == [True, True, False, False, True, True]
    assert mask[1, image].tolist() == [False] * 4 + [True] * 2, "what lacks leaves its place empty"
    torch.testing.assert_close(tokens[0, image, 4:], tokens[1, image, 4:], msg="and moves no other")
    assert not torch.allclose(said(one), said(one | {"image_views": ["left"]}), atol=1e-5)


def test_a_saved_model_knows_its_views(tmp_path: Path) -> None:
    make(FeatureSettings(**MEDIA), "image", {"image": VIEWS})[0].save_pretrained(tmp_path)
    assert FusionModel.from_pretrained(tmp_path).config.several == {"image": VIEWS}


@pytest.mark.parametrize(
    ("count", "views", "says"),
    [
        (1, ["rear"], "0 has the view 'rear', which the model does not know; there are front, left, right"),
        (2, ["left", "left"], "0 has the view 'left' more than once"),
        (2, None, "0 does not say of which view each is"),
        (4, [*VIEWS, "rear"], "0 has 4, and the model takes 3"),
    ],
)
def test_views_that_the_model_does_not_know_are_refused(count: int, views: list[str] | None, says: str) -> None:
    features = FeatureSettings(**MEDIA)
    _, collate = make(features, "image", {"image": VIEWS})
    with pytest.raises(ValueError, match=says):
        collate([rows_of("image", features, [count])[0] | {"image_views": views}])


@pytest.mark.parametrize("places", [4, ["front", "left", "right", "rear"]])
def test_single_contents_are_hidden_in_training_and_the_last_one_never_is(places: Any) -> None:
    features = FeatureSettings(**VECTORS)
    _, collate = make(features, "image", {"image": places})
    rows = [row | {"image_views": places} for row in rows_of("image", features, [4] * 250)]
    rows += [
        row | {"image_views": ["left"], "sample_id": f"one {n}"}
        for n, row in enumerate(rows_of("image", features, [1] * 9))
    ]
    hiding = replace(collate, item_dropout=0.3, seed=3)
    batch = hiding(rows)
    counts = torch.bincount(batch["image_rows"], minlength=len(rows))
    assert batch["present"].all() and counts.min() == 1 and (counts[-9:] == 1).all()
    assert 0.25 < 1 - counts[:250].sum() / 1000 < 0.35
    at = batch["image_places"][batch["image_rows"] < 250]
    held = torch.bincount(at, minlength=4) / 250
    if isinstance(places, int):
        assert held[0] == 1 and held[3] < 0.35, "the others move up, as where a row has fewer"
    else:
        assert (held > 0.6).all() and (held < 0.8).all(), "views stay at their places"
    again = hiding(rows[100:])
    torch.testing.assert_close(again["image_rows"] + 100, batch["image_rows"][batch["image_rows"] >= 100])
    other = hiding([row | {"epoch": 1} for row in rows])
    assert other["image_rows"].tolist() != batch["image_rows"].tolist(), "anew in each epoch"


@pytest.mark.slow
def test_a_model_of_six_views_copes_with_four_where_training_hid_some() -> None:
    """Each view adds a number; the label is the sign of what all of them say together."""
    six = [f"v{n}" for n in range(6)]
    features = FeatureSettings(image={"kind": "vector", "width": 8})

    def rows(count: int, seed: int, shown: int) -> list[dict[str, Any]]:
        random, made = np.random.default_rng(seed), []
        for n in range(count):
            side = 1 if n % 2 else -1
            values = [{"vector": (0.4 * side + random.normal(size=(1, 8))).astype(np.float32)} for _ in six]
            chosen = sorted(random.permutation(6)[:shown].tolist())
            row = dict.fromkeys(MODALITIES) | {"sample_id": str(n), "label": "high" if side > 0 else "low", "epoch": 0}
            row |= {"image": values[chosen[0]], "image_more": [values[c] for c in chosen[1:]]}
            made.append(row | {"image_views": [six[c] for c in chosen]})
        return made

    right = {}
    for dropout in (0.0, ModelSettings().item_dropout):
        torch.manual_seed(1)
        settings = ModelSettings(fusion="concat", output="class", width=16, layers=1, heads=2, tokens=1)
        model = build_model(settings, features, TOKENIZER, ("image",), ["high", "low"], {"image": six}).train()
        collate = make_collator(model, TOKENIZER, features)
        hiding = replace(collate, targets=partial(model.output.targets, tokenizer=TOKENIZER), item_dropout=dropout)
        given, optimizer = rows(64, 11, 6), torch.optim.AdamW(model.parameters(), 3e-3)
        for step in range(80):
            optimizer.zero_grad()
            model(**hiding([row | {"epoch": step} for row in given])).loss.backward()
            optimizer.step()
        test = rows(600, 101, 4)
        answers = model.eval().answer(collate(test), TOKENIZER)
        right[dropout] = sum(a == row["label"] for a, row in zip(answers, test, strict=True)) / len(test)
    assert right[ModelSettings().item_dropout] > right[0.0] + 0.05


def test_a_batch_of_answers_is_bounded_by_contents_and_answers_stay_the_same() -> None:
    features = FeatureSettings(**MEDIA)
    model, collate = make(features, "image", {"image": 16})
    rows, held = rows_of("image", features, [16, 1, 0, 9, 16, 2, 16, 16, 3, 1]), list[int]()
    whole = [answer.probability for answer in model.scored_answers(collate(rows), TOKENIZER)]
    model.encoders["image"].register_forward_hook(lambda _, read, __: held.append(len(read[0])))
    answers = scored_answers(model, TOKENIZER, rows, features, batch_size=32)
    assert max(held) <= 32 and sum(held) == 80 and len(held) < len(rows)
    assert [answer.probability for answer in answers] == pytest.approx(whole, abs=1e-4)


def test_rows_of_several_are_not_mixed() -> None:
    features = FeatureSettings(**VECTORS)
    model, _ = make(features, "image", {})
    assert can_mix(("image",), features, model.output, ())
    assert not can_mix(("image",), features, model.output, (), {"image"})
