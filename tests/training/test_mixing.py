"""FuseMix: which rows are mixed, into what, what the loss makes of it, and that a resumed training mixes the same."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.training.test_train import Stop
from tests.training.tiny_vectors import FEATURES as VECTORS
from tests.training.tiny_vectors import MODALITIES
from training.building import build_model
from training.catalog import OBJECTIVES, OUTPUTS
from training.collator import Collator, make_collator
from training.data import SampleDataset
from training.family import Choice
from training.features import FeatureSettings
from training.mixing import can_mix, check_mixing, mixed
from training.settings import ModelSettings, TrainingSettings, complete
from training.tokenizer import fit_tokenizer
from training.train import TrainingTask, fit

TOKENIZER = fit_tokenizer(["high", "low"], 300)
MODEL = complete(ModelSettings(width=16, layers=1, heads=2, tokens=1, output=Choice("class")), VECTORS.forms)
TRAINING = TrainingSettings(batch_size=8, epochs=2, learning_rate=5e-3, mixing=0.5, checkpoint_steps=3, evaluations=0)
LABELS = {"class": ("high", "low"), "multi_label": ("high;loud", "low"), "number": ("1", "-1")}
LABELS |= {"ranking": ("high > low", "low > high")}


def model_of(output: Any, labels: tuple[str, ...]) -> Any:
    torch.manual_seed(0)
    settings = replace(MODEL, output=output)
    return build_model(settings, VECTORS, TOKENIZER, MODALITIES, labels)


def collator_of(model: Any, **settings: Any) -> Collator:
    targets = partial(model.output.targets, tokenizer=TOKENIZER)
    return replace(make_collator(model, TOKENIZER, VECTORS), targets=targets, **settings)


def test_a_row_and_its_partner_are_mixed_alike_in_all_that_both_have(vectors: SampleDataset) -> None:
    model, rows = model_of("class", LABELS["class"]), [vectors[n] for n in range(32)]
    plain, mixed = collator_of(model)(rows), collator_of(model, mixing=1.0)(rows)
    kept, changed = mixed["mixing"], 0
    assert 0 < kept < 1
    masks = torch.cat([plain["present"], *(plain[f"{m}_mask"] for m in MODALITIES)], 1)
    for n in range(32):
        # The partner is found again by what its speech must have been.
        other = (mixed["speech"][n] - kept * plain["speech"][n]) / (1 - kept)
        partner = int((plain["speech"] - other).square().sum((1, 2)).argmin())
        for m in MODALITIES:
            torch.testing.assert_close(mixed[m][n], kept * plain[m][n] + (1 - kept) * plain[m][partner])
        assert mixed["other_labels"][n] == plain["labels"][partner]
        assert torch.equal(masks[n], masks[partner])
        changed += partner != n
    assert changed > 20
    assert all(torch.equal(mixed[name], plain[name]) for name in ("present", "labels", "speech_mask"))


def test_what_is_drawn_is_keyed_by_seed_epoch_and_sample(vectors: SampleDataset) -> None:
    model = model_of("class", LABELS["class"])

    def drawn(seed: int, epoch: int, first: int) -> tuple[float, bytes]:
        batch = collator_of(model, mixing=0.5, seed=seed)([vectors[epoch, n] for n in range(first, first + 8)])
        return float(batch["mixing"]), batch["image"].numpy().tobytes()

    found = {}
    for key in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 8)):
        np.random.seed(1)
        torch.manual_seed(1)
        found[key] = drawn(*key)
        np.random.seed(2)
        torch.manual_seed(2)
        assert drawn(*key) == found[key]
    assert len({kept for kept, _ in found.values()}) == 4


@pytest.mark.parametrize("objective", ["answer", {"kind": "unimodal", "balance": 0.5}])
@pytest.mark.parametrize("output", [*LABELS, "several"])
def test_the_loss_is_that_of_both_labels(output: str, objective: Any, vectors: SampleDataset) -> None:
    members = {"kind": "several", "outputs": {"a": "class", "b": "class"}}
    two = LABELS.get(output, ('{"a": "high", "b": "low"}', '{"a": "low"}'))
    model = model_of(members if output == "several" else output, two)
    rows = [vectors[n] | {"label": two[n % 2]} for n in range(32)]
    training = TrainingSettings(objectives=(objective,))
    model.objectives = nn.ModuleList(OBJECTIVES.make(o, model.config, training) for o in training.objectives)
    batch = collator_of(model, mixing=0.5)(rows)
    kept, other = batch.pop("mixing"), batch.pop("other_labels")
    expected = [model.train()(**batch | {"labels": labels}).losses for labels in (batch["labels"], other)]
    found = model(**batch, mixing=kept, other_labels=other).losses
    for name, loss in found.items():
        torch.testing.assert_close(loss, kept * expected[0][name] + (1 - kept) * expected[1][name])
    assert not torch.equal(batch["labels"], other)


def test_of_classes_it_is_the_loss_of_the_mixed_label(vectors: SampleDataset) -> None:
    model = model_of("class", LABELS["class"])
    training = TrainingSettings()
    model.objectives = nn.ModuleList(OBJECTIVES.make(o, model.config, training) for o in training.objectives)
    batch = collator_of(model, mixing=0.5)([vectors[n] for n in range(32)])
    output, kept = model.train()(**batch), batch["mixing"]
    first, second = (functional.one_hot(batch[name], 2) for name in ("labels", "other_labels"))
    torch.testing.assert_close(output.loss, functional.cross_entropy(output.logits, kept * first + (1 - kept) * second))


def test_a_resumed_training_ends_with_the_same_weights(vectors: SampleDataset, tmp_path: Path) -> None:
    nothing = vectors.take([])
    task = TrainingTask(
        model=MODEL, training=TRAINING, features=VECTORS, train=vectors, validation=nothing, tokenizer=TOKENIZER
    )
    whole = fit(task, tmp_path / "whole").model.state_dict()
    with pytest.raises(KeyboardInterrupt):
        fit(task, tmp_path / "cut", callbacks=[Stop(5)])
    torch.manual_seed(99)
    resumed = fit(task, tmp_path / "cut").model.state_dict()
    assert not [name for name in whole if not torch.equal(whole[name], resumed[name])]
    unmixed = fit(replace(task, training=replace(TRAINING, mixing=0.0)), tmp_path / "unmixed").model.state_dict()
    assert [name for name in whole if not torch.equal(whole[name], unmixed[name])]


@pytest.mark.parametrize(
    ("features", "output", "words"),
    [
        (FeatureSettings(speech="mfcc"), "class", r"mixing is 0\.5, expected 0 beside features\.text of the form ids"),
        (VECTORS, "text", "expected 0 where answers are written"),
    ],
)
def test_what_cannot_be_mixed_is_refused(features: FeatureSettings, output: str, words: str) -> None:
    made = OUTPUTS.make(OUTPUTS.choose(output), {})
    with pytest.raises(ValueError, match=words):
        check_mixing(0.5, MODALITIES, features, made)
    check_mixing(0.0, MODALITIES, features, made)
    with pytest.raises(ValueError, match=words.replace("mixing is 0\\.5", "cutmix is 1\\.0")):
        check_mixing(0.0, MODALITIES, features, made, cutmix=1.0)


def test_what_is_cut_needs_pictures_and_what_a_pretrained_encoder_reads_of_speech_is_not_mixed() -> None:
    made = OUTPUTS.make(Choice("class"), {})
    with pytest.raises(ValueError, match=r"training\.cutmix is 1\.0, expected 0 where no modality is read as pictures"):
        check_mixing(0.0, MODALITIES, VECTORS, made, cutmix=1.0)
    own, others = FeatureSettings(), FeatureSettings(speech={"kind": "processed", "model": "whisper"})
    check_mixing(0.5, ("image", "speech"), own, made, cutmix=1.0)
    assert not can_mix(("image", "speech"), own, made, ()), "pictures only where somebody asks for it"
    with pytest.raises(ValueError, match=r"mixing is 0\.5, expected 0 beside features\.speech of the form frames"):
        check_mixing(0.5, ("image", "speech"), others, made)


def pictures_and_sounds(random: np.random.Generator) -> dict[str, torch.Tensor]:
    """Twelve rows, of which two lack the sound, and no two sounds last as long."""
    present = torch.ones(12, 2, dtype=torch.bool)
    present[:2, 1] = False
    lasts = torch.arange(1, 13)[:, None] > torch.arange(12)
    return {
        "present": present,
        "image": torch.from_numpy(random.normal(size=(12, 3, 8, 10)).astype(np.float32)),
        "speech": torch.from_numpy(random.normal(size=(12, 12, 4)).astype(np.float32)) * lasts[..., None],
        "speech_mask": lasts & present[:, 1:],
        "labels": torch.arange(12),
    }


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("alpha", "cutmix"), [(0.7, 0.0), (0.0, 1.0), (0.5, 0.5)])
def test_pictures_and_spectrograms_are_mixed_by_the_share_that_the_label_has(
    alpha: float, cutmix: float, seed: int
) -> None:
    """The partner is told by its label, and what must have come of both is worked out pixel by pixel."""
    plain = pictures_and_sounds(np.random.default_rng(seed))
    state = torch.get_rng_state()
    found = mixed(plain, {"image": "grid", "speech": "frames"}, alpha, np.random.default_rng(seed), cutmix)
    assert torch.equal(torch.get_rng_state(), state)
    kept = float(found["mixing"])
    for n, partner in enumerate(found["other_labels"].tolist()):
        assert torch.equal(plain["present"][n], plain["present"][partner])
        own, other, made = plain["image"][n], plain["image"][partner], found["image"][n]
        if torch.equal((made == own) | (made == other), torch.ones_like(made, dtype=torch.bool)):
            assert cutmix > 0
            if partner != n:
                there = (made == other).all(0)
                assert there.float().mean() == pytest.approx(1 - kept, abs=1e-6)
                rows, columns = there.any(1).sum(), there.any(0).sum()
                assert rows * columns == there.sum(), "it is a box"
        else:
            assert alpha > 0
            torch.testing.assert_close(made, kept * own + (1 - kept) * other)
        sounds = [plain["speech"][k] for k in (n, partner)]
        torch.testing.assert_close(found["speech"][n], kept * sounds[0] + (1 - kept) * sounds[1])
        assert found["speech_mask"][n].sum() == max(plain["speech_mask"][k].sum() for k in (n, partner))


def test_with_both_each_batch_has_one_of_the_two() -> None:
    plain, kinds = pictures_and_sounds(np.random.default_rng(0)), []
    for seed in range(40):
        made = mixed(plain, {"image": "grid", "speech": "frames"}, 1.0, np.random.default_rng(seed), 1.0)["image"]
        kinds.append(torch.isin(made, plain["image"]).all().item())
    assert 10 < sum(kinds) < 30
