"""Pretrained encoders inside the model, over the families of `tiny_encoders`: what they read, say, learn and carry."""

import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.training.tiny_encoders import CASES, CONTENTS
from training.adaptation import merge
from training.building import build_model, check_encoders
from training.catalog import ENCODERS
from training.features import FeatureSettings
from training.model import FusionModel
from training.preprocessing import Recording
from training.pretrained import load_encoder
from training.processor import Processor
from training.seeding import generator
from training.settings import MediaLimits, ModelSettings, SpeechAugmentation, TrainingSettings, complete
from training.spec import plan_runs
from training.train import make_collator

WHOLE = ("bert", "vit", "timm", "whisper")  # trained whole, too: what that does depends little on the family
SMALL = ModelSettings(width=16, layers=1, heads=2, tokens=2, max_new_tokens=4)


def clean(content: Any) -> Any:
    """What a modality's `decode` would give."""
    if isinstance(content, Recording):
        return SimpleNamespace(waveform=content.waveform, sample_rate=content.rate)
    return SimpleNamespace(text=content, array=getattr(content, "pixels", None))


def make(modality: str, model: Path, tokenizer: Any, **options: Any) -> tuple[FusionModel, dict[str, Any], Processor]:
    """A model that reads one modality by a pretrained encoder, and the batch of CONTENTS."""
    settings = replace(SMALL, encoders={modality: {"kind": "huggingface", "model": str(model), **options}})
    features = FeatureSettings().with_encoders(settings.encoders)
    processor = Processor(features, MediaLimits())
    rows = [
        {**processor.row(), "sample_id": str(n), "label": "79"[n % 2], "epoch": 0}
        | {modality: processor.featurize(modality, clean(content))}
        for n, content in enumerate(CONTENTS[modality])
    ]
    torch.manual_seed(0)
    network = build_model(settings, features, tokenizer, (modality,), ["7", "9"])
    collator = make_collator(network, tokenizer, features)
    return network, replace(collator, targets=partial(network.output.targets, tokenizer=tokenizer))(rows), processor


@pytest.mark.parametrize(("family", "modality"), CASES)
def test_frozen_it_says_what_embeddings_say_and_a_model_carries_it(
    family: str,
    modality: str,
    tiny_encoder: Callable[[str], Path],
    tokenizer: Any,
    tmp_path: Path,
) -> None:
    model, batch, processor = make(modality, tiny_encoder(family), tokenizer)
    encoder, values = model.train().encoders[modality], (batch[modality], batch.get(f"{modality}_mask"))
    assert not encoder.network.training and not any(p.requires_grad for p in encoder.network.parameters())
    expected = load_encoder(modality, tiny_encoder(family)).embed(CONTENTS[modality], 4, -1, 4)
    np.testing.assert_allclose(encoder.vectors(*values), np.stack(expected), rtol=4e-3, atol=4e-3)

    for part in (model.eval(), processor):
        part.save_pretrained(tmp_path)
    torch.testing.assert_close(FusionModel.from_pretrained(tmp_path)(**batch).loss, model(**batch).loss)
    carried = Processor.from_pretrained(tmp_path)
    assert not list((tmp_path / f"{modality}_features").glob("*.safetensors")), "the model has the weights"
    assert carried.fingerprint(modality) == processor.fingerprint(modality)
    (name,) = carried.featurizers[modality].tensors
    rows = [p.featurize(modality, clean(CONTENTS[modality][1]))[name] for p in (carried, processor)]
    np.testing.assert_array_equal(*rows)


@pytest.mark.parametrize(
    ("family", "modality", "train"),
    [
        *((*case, "lora") for case in CASES if case[0] != "torchvision"),  # which has no linear layer
        *((*case, "full") for case in CASES if case[0] in WHOLE),
    ],
)
def test_what_is_trained_gets_a_gradient(
    family: str,
    modality: str,
    train: str,
    tmp_path: Path,
    tiny_encoder: Callable[[str], Path],
    tokenizer: Any,
) -> None:
    model, batch, _ = make(modality, tiny_encoder(family), tokenizer, train=train)
    encoder = model.train().encoders[modality]
    trained = {name: p for name, p in encoder.network.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in name for name in trained) == (train == "lora")
    assert encoder.network.training == (train == "full")
    model(**batch).loss.backward()
    without = [name for name, p in trained.items() if p.grad is None or not p.grad.abs().sum() > 0]
    assert all("lora_A" in name for name in without), "B starts at zero, so that nothing reaches A in the first step"

    def vectors(model: FusionModel) -> torch.Tensor:
        return model.eval().encoders[modality].vectors(batch[modality], batch.get(f"{modality}_mask"))

    before = vectors(model)
    torch.nn.utils.vector_to_parameters(torch.randn(sum(p.numel() for p in trained.values())), trained.values())
    after = vectors(model)
    assert not torch.equal(before, after)
    merge(model.encoders)  # as the training ends
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(vectors(FusionModel.from_pretrained(tmp_path)), after, rtol=1e-3, atol=1e-3)


def test_models_share_what_they_do_not_train(tiny_encoder: Any, tokenizer: Any) -> None:
    def weights(train: str) -> dict[str, torch.Tensor]:
        model, _, _ = make("image", tiny_encoder("vit"), tokenizer, train=train)
        network, names = model.encoders["image"].network, frozen
        if train == "lora":
            with torch.no_grad():
                for name, parameter in network.named_parameters():
                    parameter += 1.0 if ".lora_" in name else 0.0
            merge(model.encoders)
        return {name: tensor for name, tensor in network.state_dict().items() if not names or name in names}

    frozen: Any = None
    frozen = weights("frozen")
    before = {name: tensor.clone() for name, tensor in frozen.items()}
    assert all(tensor.data_ptr() == frozen[name].data_ptr() for name, tensor in weights("frozen").items())
    assert not any(tensor.data_ptr() == frozen[name].data_ptr() for name, tensor in weights("full").items())
    merged = weights("lora")
    assert any(not torch.equal(tensor, before[name]) for name, tensor in merged.items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in frozen.items()), "what one learns stays its own"


def changed(model: Path, folder: Path, **values: Any) -> Path:
    """A copy of a model, with other values in its preprocessing."""
    shutil.copytree(model, folder)
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return folder


@pytest.mark.parametrize(("family", "bands"), [("whisper", True), ("wav2vec2", False)])
def test_a_recording_is_changed_before_the_preprocessing_and_read_as_before(
    family: str, bands: bool, tiny_encoder: Callable[[str], Path]
) -> None:
    said = {"kind": "huggingface", "model": str(tiny_encoder(family))}
    features = FeatureSettings(speech={"keep_waveform": True}).with_encoders({"speech": said})
    featurizer = features.featurizer("speech")
    row = featurizer.featurize(clean(CONTENTS["speech"][0]))
    clip = np.round(20000 * np.sin(np.arange(1000))).astype(np.int16)

    def changed(seed: int = 0, **settings: Any) -> np.ndarray:
        augment = pickle.loads(pickle.dumps(featurizer.augmenter(SpeechAugmentation(**settings), [clip])))
        return augment(row["waveform"], generator(seed, 1, "a"))

    np.testing.assert_allclose(changed(), row["processed"], atol=0.02)  # the waveform is kept in 16 bits
    for settings in ({"pitch": 6}, {"speed": 0.4}, {"noise_snr_db": (0, 0), "noise_chance": 1}):
        one, same, other = changed(1, **settings), changed(1, **settings), changed(2, **settings)
        np.testing.assert_array_equal(one, same)
        assert one.dtype == row["processed"].dtype and one.shape[1] == row["processed"].shape[1]
        assert one.shape != other.shape or not np.array_equal(one, other)
    shorter, longer = (changed(n, speed=0.5)[:, -1].sum() for n in (1, 2))
    assert shorter != longer != row["processed"][:, -1].sum(), "what is no padding is counted anew"
    plain, masked = changed(), changed(time_masks=1, mask_share=0.5)
    hidden = (masked != plain).any(1)
    assert 0 < hidden.mean() <= 0.5 and len(np.unique(masked[hidden, :-1])) == 1
    np.testing.assert_array_equal(masked[:, -1], plain[:, -1])
    assert np.array_equal(changed(frequency_masks=2), plain) is not bands
    with pytest.raises(ValueError, match=r"set features\.speech\.keep_waveform: true"):
        FeatureSettings().with_encoders({"speech": said}).featurizer("speech").augmenter(SpeechAugmentation(), [])


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("no weights", r"model\.encoders\.image: model is the folder .* which has no weights as safetensors"),
        ("another modality", r"model\.encoders\.image: model .* cannot be loaded as an encoder of pictures"),
        ("another size", r"model\.encoders\.image: model .* does not read what its own preprocessing makes.*64"),
        ("targets", r"model\.encoders\.image: targets nothing: no layer is called so; LoRA can be added to .*q_proj"),
        ("a rate", "model.encoders.image: encoder huggingface: learning_rate is 0.1, expected null where train is fro"),
    ],
)
def test_what_cannot_be_is_told_before_a_run(case: str, words: str, tiny_encoder: Any, tmp_path: Path) -> None:
    model, options = tiny_encoder("vit"), dict[str, Any]()
    if case == "no weights":
        model = changed(model, tmp_path / "copy")
        (model / "model.safetensors").unlink()
    elif case == "another modality":
        model = tiny_encoder("bert")
    elif case == "another size":
        model = changed(model, tmp_path / "copy", size={"height": 64, "width": 64})
    elif case == "targets":
        options = {"train": "lora", "targets": "nothing"}
    else:
        options = {"learning_rate": 0.1}
    said = {"image": {"kind": "huggingface", "model": str(model), **options}}
    with pytest.raises(ValueError, match=words):
        settings = complete(ModelSettings(encoders=said), {"image": "grid"})
        check_encoders(settings.encoders, FeatureSettings().with_encoders(settings.encoders))


def test_features_are_those_that_the_encoder_reads() -> None:
    def features(encoder: Any, **sections: Any) -> FeatureSettings:
        return FeatureSettings(**sections).with_encoders({"speech": encoder})

    encoder = {"kind": "huggingface", "model": "some/model", "train": "full"}
    said = {"kind": "processed", "model": "some/model"}
    assert features(encoder).plain() == {"speech": said} == features(encoder, speech=said).plain()
    assert features(encoder, speech={"kind": "processed", "pad": True}).plain() == {"speech": said | {"pad": True}}
    assert features("small_cnn") == FeatureSettings()
    for sections, words in (
        ({"kind": "mfcc"}, r"features\.speech is mfcc, which model\.encoders\.speech \(huggingface\) does not read"),
        ({"kind": "log_mel"}, r"features\.speech is log_mel, which"),
        (said | {"model": "another"}, r"features\.speech\.model is 'another', and that of model\.encoders\.speech"),
        ({"mels": 30}, r"features\.speech: mels is not a key that is known here"),
    ):
        with pytest.raises(ValueError, match=words):
            features(encoder, speech=sections)
    with pytest.raises(ValueError, match=r"model\.encoders\.speech \(huggingface\) has no model: {kind: huggingface"):
        features("huggingface")


def test_its_files_name_the_training_wherever_they_lie(tiny_encoder: Any, tmp_path: Path) -> None:
    def name(model: Path, **options: Any) -> str:
        choice = ENCODERS.choose({"kind": "huggingface", "model": str(model), **options}, "grid")
        features = FeatureSettings().with_encoders({"image": choice})
        runs = plan_runs(ModelSettings(encoders={"image": choice}), TrainingSettings(), features, ["image"], "d")
        return runs[0].fingerprint

    copy = tmp_path / "copy"
    shutil.copytree(tiny_encoder("vit"), copy)
    before = name(tiny_encoder("vit"))
    assert name(copy) == before
    assert len({before, name(copy, tokens=5), name(copy, train="full"), name(copy, train="lora")}) == 4
    weights = copy / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    assert name(copy) != before
