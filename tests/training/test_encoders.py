"""The contract of encoders, over every kind of the catalogue, for each form of features, and one of a user's own each;
`test_model.py` has them inside the model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.training.conftest import featurized
from training.catalog import ENCODERS
from training.encoders.base import Encoder
from training.encoders.huggingface import HuggingfaceEncoder
from training.features import FeatureSettings
from training.featurizers.base import FeatureShape
from training.layers import AttentionPool, ModelShape
from training.model import FusionModel
from training.padding import padded_frames
from training.preprocessing import Recording, SpeechPreprocessing

B, S, WIDTH, TOKENS = 8, 40, 96, 2
OWN = {
    "grid": "own_kinds:OwnGridEncoder",
    "frames": "own_kinds:OwnFramesEncoder",
    "ids": "own_kinds:OwnIdsEncoder",
    "vectors": "own_kinds:OwnFramesEncoder",
}
KINDS = [(form, kind) for form in ENCODERS.kinds for kind in ENCODERS.names(form)] + list(OWN.items())
SEQUENCES = [(form, kind) for form, kind in KINDS if form != "grid"]
MODALITIES = {"grid": "image", "frames": "speech", "ids": "text"}
PRETRAINED = {"grid": "vit", "frames": "whisper", "ids": "bert"}
FOLDERS: dict[str, Path] = {}  # of these


@pytest.fixture(autouse=True)
def importable(own_kinds: Path) -> None:
    """Users' own kinds can be imported in all of these tests."""


@pytest.fixture(autouse=True, scope="module")
def folders(tiny_encoder: Callable[[str], Path]) -> None:
    FOLDERS.update({form: tiny_encoder(family) for form, family in PRETRAINED.items()})


def said(form: str, kind: str) -> Any:
    """As the project file says it."""
    return {"kind": kind, "model": str(FOLDERS[form])} if kind == "huggingface" else kind


def make(form: str, kind: str, seed: int = 0) -> Encoder:
    torch.manual_seed(seed)
    if kind == "huggingface":
        return make_pretrained(form)
    source = {"grid": FeatureShape("grid", 3, 20), "frames": FeatureShape("frames", 12), "ids": FeatureShape("ids", 50)}
    source |= {form: FeatureShape(form, 50) for form in ("symbols", "counts")}
    source["vectors"] = FeatureShape("vectors", 12)
    shape = ModelShape(WIDTH, TOKENS, heads=4)
    encoder = ENCODERS.make(ENCODERS.choose(kind, form), source[form], shape, scope=form)
    for module in encoder.modules():
        if isinstance(module, AttentionPool):  # else its queries are whatever lay in memory
            module.reset_parameters()
    return encoder


def make_pretrained(form: str) -> Encoder:
    choice = ENCODERS.choose({**said(form, "huggingface"), "train": "full"}, form)
    features = FeatureSettings().with_encoders({MODALITIES[form]: choice})
    start = ENCODERS.load("huggingface", form).start(ENCODERS.options(choice, form))
    source, shape = features.featurizer(MODALITIES[form]).shape(), ModelShape(WIDTH, TOKENS, heads=4)
    encoder: Encoder = ENCODERS.make(choice, source, shape, scope=form, facts=start.facts)
    encoder.take(start, "encoder", *inputs(form, encoder))
    for module in encoder.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # what is compared in training mode draws nothing
    return encoder


def inputs(form: str, encoder: Encoder) -> tuple[Tensor, Tensor | None]:
    torch.manual_seed(1)
    if isinstance(encoder, HuggingfaceEncoder):
        return pretrained_inputs(form)
    if form == "grid":
        return torch.randn(B, 3, 20, 20), None
    mask = torch.arange(S) < torch.tensor([40, 39, 25, 7, 1, 40, 2, 11])[:, None]
    if form in ("frames", "vectors"):
        return torch.randn(B, S, 12), mask
    if form == "counts":
        return torch.stack([torch.randint(0, 50, (B, S)), torch.randint(1, 9, (B, S))], 2), mask
    # A kind that reads the prompt is given embeddings: as wide as the vocabulary here, which says nothing.
    return (torch.randn(B, S, 50) if encoder.reads_prompt else torch.randint(0, 50, (B, S))), mask


def pretrained_inputs(form: str) -> tuple[Tensor, Tensor | None]:
    if form == "grid":
        return torch.rand(B, 3, 32, 32), None
    if form == "frames":
        preprocessing = SpeechPreprocessing(FOLDERS[form])
        waves = [torch.randn(round(16_000 * seconds)).numpy() for seconds in (0.1, 0.6, 1.2, 0.5, 0.3, 1.5, 0.9, 0.01)]
        return padded_frames([preprocessing.stored(Recording(wave, 16_000)) for wave in waves], 81)
    mask = torch.arange(S) < torch.tensor([40, 39, 25, 7, 1, 40, 2, 11])[:, None]
    return torch.randint(3, 259, (B, S)), mask


@pytest.mark.parametrize(("form", "kind"), KINDS)
def test_tokens_have_the_shape_that_the_encoder_says(form: str, kind: str) -> None:
    encoder = make(form, kind)
    tokens, mask = encoder(*inputs(form, encoder))
    assert tokens.shape == (B, TOKENS, encoder.width) and tokens.isfinite().all()
    assert mask.shape == (B, TOKENS) and mask.dtype == torch.bool and mask.any(1).all()


@pytest.mark.parametrize(("form", "kind"), KINDS)
def test_gradients_reach_every_parameter(form: str, kind: str) -> None:
    encoder = make(form, kind).train()
    tokens, _ = encoder(*inputs(form, encoder))
    (tokens * torch.randn_like(tokens)).sum().backward()
    trained = [(name, p) for name, p in encoder.named_parameters() if p.requires_grad]
    assert trained and not [name for name, p in trained if p.grad is None or not p.grad.abs().sum() > 0]


@pytest.mark.parametrize(("form", "kind"), SEQUENCES)
@pytest.mark.parametrize("training", [True, False])
def test_padding_never_matters(form: str, kind: str, training: bool) -> None:
    encoder = make(form, kind).train(training)
    values, mask = inputs(form, encoder)
    assert mask is not None
    expected, _ = encoder(values, mask)
    padding = torch.full((B, 2000, *values.shape[2:]), 5, dtype=values.dtype)
    longer = torch.cat([mask, torch.zeros(B, 2000, dtype=torch.bool)], 1)
    tokens, _ = encoder(torch.cat([values, padding], 1), longer)
    torch.testing.assert_close(tokens, expected, rtol=1e-4, atol=1e-4)
    hidden = values.clone()
    hidden[~mask] = 7
    torch.testing.assert_close(encoder(hidden, mask)[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("form", "kind"), KINDS)
def test_a_saved_encoder_gives_the_same(form: str, kind: str, tmp_path: Path) -> None:
    encoder, other = make(form, kind), make(form, kind, seed=2).eval()
    encoder(*inputs(form, encoder))  # moves running statistics
    values = inputs(form, encoder.eval())
    save_file(encoder.state_dict(), tmp_path / "encoder.safetensors")
    assert not torch.equal(other(*values)[0], encoder(*values)[0])
    other.load_state_dict(load_file(tmp_path / "encoder.safetensors"))
    torch.testing.assert_close(other(*values), encoder(*values), rtol=0, atol=0)


@pytest.mark.parametrize(("form", "kind"), [(form, kind) for form, kind in KINDS if form in MODALITIES])
def test_the_model_saves_its_encoder_and_never_reads_what_a_row_lacks(
    form: str, kind: str, rows: Any, make_model: Callable[..., Any], tmp_path: Path
) -> None:
    modality = MODALITIES[form]
    encoders = {modality: said(form, kind)}
    features = {"features": FeatureSettings().with_encoders(encoders)} if kind == "huggingface" else {}
    rows = featurized(features["features"]) if features else rows
    model, batch = make_model(rows, **features, encoders=encoders)
    model.eval().save_pretrained(tmp_path)
    loss = FusionModel.from_pretrained(tmp_path).eval()(**batch).loss
    torch.testing.assert_close(loss, model(**batch).loss)
    absent = ~batch["present"][:, list(model.config.modalities).index(modality)]
    if modality in batch:  # a prompt is read by the language model, too
        garbage = batch[modality].clone()
        garbage[absent] = torch.nan if garbage.is_floating_point() else 65
        torch.testing.assert_close(model(**(batch | {modality: garbage})).loss, loss, rtol=0, atol=0)
    assert isinstance(model.encoders[modality], nn.Module) and absent.any()


def test_a_linear_encoder_starts_at_the_principal_axes() -> None:
    random = np.random.default_rng(0)
    # 12 features of unlike sizes that four directions make, and none that moves beyond.
    mixing = random.normal(size=(4, 12)) * 10.0 ** random.uniform(-3, 3, 12)
    rows = [(random.normal(size=(3, 4)) @ mixing + 5).astype(np.float32) for _ in range(80)]
    encoder: Any = make("vectors", "linear")
    before, state = encoder.projection.weight.detach().clone(), torch.get_rng_state()
    encoder.fit(iter(rows))
    assert torch.equal(torch.get_rng_state(), state)
    x = torch.from_numpy(np.concatenate(rows))
    said = encoder.projection((x - x.mean(0)) / x.std(0)).detach()
    torch.testing.assert_close(said[:, :4].T.cov(), torch.eye(4), atol=0.02, rtol=0)
    assert torch.equal(encoder.projection.weight[4:], before[4:])  # it has more outputs than there are directions
    encoder.fit(iter(rows[:0]))  # no row has the modality
