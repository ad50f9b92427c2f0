"""Outputs that make contents: one model draws what it hears and says what it sees, as codes that codecs decode."""

import json
import pickle
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from training.building import build_model
from training.catalog import OUTPUTS
from training.codecs.base import make_codec
from training.codecs.options import Alphabet, Source
from training.codes import words_of
from training.collator import make_collator
from training.features import FeatureSettings
from training.likeness import likenesses
from training.media_files import content_of, is_media
from training.model import FusionModel
from training.records import Answer, Answered
from training.schema import DATASET
from training.settings import GenerationSettings, ModelSettings, complete

FEATURES = FeatureSettings(
    image={"size": 8, "color": "grey"},
    speech={"sample_rate": 4000, "mels": 12, "coefficients": 8, "window_ms": 32, "hop_ms": 16, "keep_waveform": True},
)
OUTPUTS_OF = {
    "drawn": {"kind": "image", "codec": {"kind": "autoencoder", "width": 8, "steps": 120, "reduction": 4}},
    "said": {"kind": "speech", "codec": {"kind": "mel", "width": 16, "steps": 150, "mels": 16, "seconds": 0.6}},
}


def contents(n: int) -> dict[str, Any]:
    """Of an even number a bright upper half and a low tone, of an odd one a lower half and a high one."""
    random = np.random.default_rng(n)
    pixels = np.zeros((1, 8, 8), np.uint8)
    pixels[:, slice(0, 4) if n % 2 == 0 else slice(4, 8)] = 240
    pixels += random.integers(0, 15, pixels.shape, np.uint8)
    tone = 9000 * np.sin(2 * np.pi * (300 if n % 2 == 0 else 1300) * np.arange(1200 + 40 * (n % 8)) / 4000)
    return {"image": pixels, "speech": np.round(tone + random.normal(0, 60, len(tone))).astype(np.int16)}


def row(n: int, *given: str, label: str | None = None) -> dict[str, Any]:
    from training.spectra import speech_spectra

    made = contents(n)
    ((log_mel, mfcc),) = speech_spectra([made["speech"] / np.float32(32768)], FEATURES.options("speech"))
    speech = {"log_mel": log_mel, "mfcc": mfcc, "waveform": made["speech"]}
    features = {"text": None, "image": {"pixels": made["image"]}, "speech": speech}
    shown = {m: features[m] if m in given else None for m in features}
    return shown | {"sample_id": f"{n}", "epoch": 0, "label": label}


def asked_of(n: int) -> list[dict[str, Any]]:
    """As training reads a sample that has both."""
    return [
        row(n, "speech", label=json.dumps({"drawn": f"i{n}"})),
        row(n, "image", label=json.dumps({"said": f"s{n}"})),
    ]


def made_model(**settings: Any) -> tuple[Any, Any]:
    """A new model of few weights with its codecs, and the tokenizer."""
    from training.tokenizer import fit_tokenizer

    torch.manual_seed(0)
    settings = {
        "outputs": OUTPUTS_OF,
        "fusion": "concat",
        "width": 32,
        "heads": 2,
        "layers": 1,
        "tokens": 1,
        **settings,
    }
    chosen = complete(ModelSettings(**settings), {m: FEATURES.forms[m] for m in ("image", "speech")})
    inputs = OUTPUTS.make(chosen.output, {}).inputs(("image", "speech"))
    tokenizer = fit_tokenizer(["a"], 300)
    model = build_model(chosen, FEATURES, tokenizer, inputs, ["{}"])
    codecs, codes = {}, {}
    for modality, choice in model.output.codec_choices.items():
        codecs[modality] = make_codec(choice, Source.of(FEATURES, modality), modality)
        given = {f"{modality[0]}{n}": contents(n)[modality] for n in range(8)}
        codecs[modality].fit(list(given.values()), lambda _: None)
        codes[modality] = dict(zip(given, codecs[modality].encode(list(given.values())), strict=True))
    model.output.take(codecs, codes)
    return model, tokenizer


def batch_of(model: Any, tokenizer: Any, rows: list[dict[str, Any]]) -> Any:
    collator = make_collator(model, tokenizer, FEATURES)
    if rows[0]["label"] is not None:
        collator = replace(collator, targets=partial(model.output.targets, tokenizer=tokenizer))
    return collator(rows)


@pytest.fixture(scope="module")
def trained() -> tuple[Any, Any]:
    model, tokenizer = made_model()
    batch = batch_of(model, tokenizer, [one for n in range(8) for one in asked_of(n)])
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    model.train()
    for _ in range(60):
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
    assert {n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())} == set()
    assert loss < 0.5 * np.log(256)
    return model.eval(), tokenizer


def near(model: Any, name: str, url: str) -> int:
    """Which of the contents 0 (even) and 1 (odd) an answer is more like."""
    source = model.output.codecs[name].source
    small = likenesses(
        [content_of(url, source), *(contents(n)[model.output.parts[name].modality] for n in (0, 1))], source
    )
    return int((small[1:] @ small[0]).argmax())


def test_a_model_draws_what_it_hears_and_says_what_it_sees(trained: Any) -> None:
    model, tokenizer = trained
    rows = [row(n, m) for n in (10, 11) for m in ("speech", "image")]
    answers = model.scored_answers(batch_of(model, tokenizer, rows), tokenizer)
    for one, answer in zip(rows, answers, strict=True):
        asked, other = ("drawn", "said") if one["speech"] else ("said", "drawn")
        assert answer.prediction[other] is None and is_media(answer.prediction[asked])
        assert near(model, asked, answer.prediction[asked]) == int(one["sample_id"]) % 2
        told = answer.to_json()
        assert told["outputs"][asked]["prediction"] == told["prediction"][asked] and not told["abstained"]
    alone = [model.scored_answers(batch_of(model, tokenizer, [one]), tokenizer)[0] for one in rows]
    assert [one.prediction for one in alone] == [one.prediction for one in answers]
    (nothing,) = model.answer(batch_of(model, tokenizer, [row(3, "image", "speech")]), tokenizer)
    assert nothing == {"drawn": None, "said": None}, "who gives both is told neither"


def test_a_saved_model_answers_the_same(trained: Any, tmp_path: Path) -> None:
    model, tokenizer = trained
    model.save_pretrained(tmp_path)
    loaded, batch = FusionModel.from_pretrained(tmp_path).eval(), batch_of(model, tokenizer, [row(2, "speech")])
    assert loaded.answer(batch, tokenizer) == model.answer(batch, tokenizer)
    assert not list(tmp_path.rglob("*.bin"))


def test_codes_can_be_drawn_the_same_for_the_same_row(trained: Any) -> None:
    model, tokenizer = trained
    was = model.config.generation
    try:
        model.config.generation = {"do_sample": True, "temperature": 3.0}
        rows = [row(n, "speech") for n in (0, 2, 4)]
        drawn = model.answer(batch_of(model, tokenizer, rows), tokenizer)
        assert drawn == model.answer(batch_of(model, tokenizer, rows), tokenizer)
        assert drawn[1:] == model.answer(batch_of(model, tokenizer, rows[1:]), tokenizer)
        assert len({one["drawn"] for one in drawn}) > 1
    finally:
        model.config.generation = was
    assert GenerationSettings(**was) == GenerationSettings()


def test_one_content_is_answered_from_the_others() -> None:
    model, tokenizer = made_model(outputs=None, output={**OUTPUTS_OF["drawn"], "format": "webp"})
    assert model.config.modalities == ["speech"] and model.output.metric().name == "nearness"
    (answer,) = model.answer(batch_of(model, tokenizer, [row(3, "speech")]), tokenizer)
    assert answer.startswith("data:image/webp;base64,")
    assert content_of(answer, Source.of(FEATURES, "image")).shape == (1, 8, 8)


def test_targets_can_be_made_by_a_worker(trained: Any) -> None:
    model, _ = trained
    labels = [one["label"] for one in asked_of(1)]
    there = pickle.loads(pickle.dumps(model.output))
    assert torch.equal(there.targets(labels, None), model.output.targets(labels, None))
    words, total = words_of(
        {"a": Alphabet(codes=4, length=2, is_fixed=True), "b": Alphabet(codes=3, length=9, is_fixed=False)}
    )
    assert (words["a"].begin, words["a"].first, words["a"].end) == (0, 2, None)
    assert (words["b"].begin, words["b"].first, words["b"].end, total) == (1, 6, 9, 10)


def test_training_reads_a_sample_once_for_each_content_without_that_content() -> None:
    output = OUTPUTS.make(OUTPUTS.choose({"kind": "contents", "outputs": OUTPUTS_OF}), {})
    labels = [
        output.own_label(given)
        for given in ({"image": "i", "speech": "s"}, {"image": "i", "text": "t"}, {"image": "i"})
    ]
    assert labels == ['{"drawn": "i", "said": "s"}', '{"drawn": "i"}', None]
    samples = [
        {"sample_id": "1", "image_id": "i", "speech_id": "s", "label": labels[0], "split": "train"},
        {"sample_id": "2", "image_id": "i", "text_id": "t", "label": labels[1], "split": "train"},
    ]
    rows = output.questions(pa.Table.from_pylist(samples, DATASET)).to_pylist()
    told = [(one["sample_id"], one["text_id"], one["image_id"], one["speech_id"], one["label"]) for one in rows]
    assert told == [
        ("1", None, None, "s", '{"drawn": "i"}'),
        ("2", "t", None, None, '{"drawn": "i"}'),
        ("1", None, "i", None, '{"said": "s"}'),
    ]


def test_answers_are_judged_by_how_near_they_come_to_the_right_content(trained: Any) -> None:
    model, _ = trained
    output, picture = model.output, model.output.parts["drawn"]
    source = output.codecs["drawn"].source
    urls = [picture.as_file(contents(n)["image"], source) for n in range(4)]

    def look(modality: str, ids: Any) -> Any:
        known = Source.of(FEATURES, modality)
        return likenesses([contents(int(content[1:]))[modality] for content in ids], known), known

    def answered(subset: str, n: int, url: str | None) -> Answered:
        label = output.read(json.dumps({"drawn": f"i{n}", "said": f"s{n}"}))
        return Answered(f"{n}", subset, label, Answer({"drawn": url, "said": None}))

    right = [answered("speech", n, urls[n]) for n in range(4)] + [answered("image+speech", n, None) for n in range(4)]
    judged = output.judged(right, look)
    assert [one.answer.prediction["drawn"] for one in judged] == [1.0] * 8
    assert [one.label["said"] for one in judged] == [None] * 4 + [1.0] * 4, "speech was given, then all of it"
    values = [one.label for one in judged], [one.answer for one in judged]
    figures = output.figures(*values)
    assert figures["drawn.nearness"].value == 1 and figures["said.nearness"].value == 0
    assert pa.array([one.label for one in judged], output.judged_type).null_count == 0
    wrong = [answered("speech", n, urls[(n + 1) % 4]) for n in range(4)]
    judged = output.judged(wrong, look)
    told = output.figures([one.label for one in judged], [one.answer for one in judged])
    assert told["drawn.nearness"].value < 0.5
    assert output.metric().value(values[0][:4], [Answer(output.constant([]))] * 4) == 0.5


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"kind": "image", "format": "bmp"}, "format is 'bmp'"),
        ({"kind": "image", "codec": "mel"}, "codec is 'mel', expected one of autoencoder"),
        ({"kind": "speech", "codec": {"kind": "mel", "seconds": 0}}, "seconds is 0"),
        ({"kind": "speech", "codec": "huggingface"}, "codec is 'huggingface', expected {kind: huggingface, model"),
        ({"kind": "contents", "outputs": {"a": "image", "b": "image"}}, "expected each modality once"),
        ({"kind": "contents", "outputs": {"a": "image", "b": "class"}}, "outputs.b is 'class', expected one of image"),
    ],
)
def test_what_is_wrong_is_named(value: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        OUTPUTS.choose(value)


def test_fusions_that_read_one_by_one_and_beams_are_refused() -> None:
    with pytest.raises(ValueError, match="expected one that reads all at once"):
        made_model(fusion="logit")
