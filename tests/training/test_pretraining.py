"""Encoders that learn without labels: what is hidden of an input, what is learned, and what starts from it."""

import signal
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.training.test_train import MODEL, TRAINING, make_task
from training.cache import FeatureCache
from training.data import SampleDataset
from training.pretraining import Pretrained, hide, pretrain
from training.pretraining_settings import PretrainingSettings, check_pretraining, learning
from training.schema import DATASET, features_table
from training.settings import ModelSettings, complete
from training.train import fit, make_tokenizer, new_model

FORMS = {"text": "ids", "image": "grid", "speech": "frames"}
FEW = PretrainingSettings(epochs=12, batch_size=16, learning_rate=5e-3)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> SampleDataset:
    return make_pairs(tmp_path_factory.mktemp("cache"))


def make_pairs(root: Path) -> SampleDataset:
    """96 rows of which each picture has a bright row where its sound has loud bands, no two the same; no labels."""
    random = np.random.default_rng(0)
    pictures, sounds, index = [], [], []
    for n in range(96):
        kind = n % 8
        pixels = random.integers(0, 60, (1, 8, 8))
        pixels[0, kind] += 190
        frames = random.normal(size=(8, 8)) * 0.1
        frames[:, kind] += 2
        pictures.append({"id": f"i{n}", "fingerprint": "f", "pixels": pixels.astype(np.uint8)})
        sounds.append({"id": f"s{n}", "fingerprint": "f", "log_mel": frames.astype(np.float32)})
        index.append({"sample_id": f"{n:02d}", "label": None, "image_id": f"i{n}", "speech_id": f"s{n}"})
    caches = {}
    for modality, name, dtype, rows in (
        ("image", "pixels", "uint8", pictures),
        ("speech", "log_mel", "float32", sounds),
    ):
        caches[modality] = FeatureCache(root, modality, "f", {name: dtype})
        table = features_table(modality, {name: dtype}, rows)
        caches[modality].add(ds.dataset(table), [row["id"] for row in rows])
    return SampleDataset(pa.Table.from_pylist(index, schema=DATASET), caches)


def labelled(pairs: SampleDataset, rows: Any) -> SampleDataset:
    index = pairs.take(rows).index
    labels = pa.array(["high" if int(i) % 8 > 3 else "low" for i in index["sample_id"].to_pylist()])
    return SampleDataset(index.set_column(index.column_names.index("label"), "label", labels), pairs.caches)


def task_of(pairs: SampleDataset, **changes: Any) -> Any:
    train, validation = labelled(pairs, range(16)), labelled(pairs, range(64, 96))
    model, training = replace(MODEL, **changes), replace(TRAINING, epochs=3)
    return make_task(train, validation, make_tokenizer(train, model, training), model, training)


@given(
    st.sampled_from(["grid", "frames", "ids"]),
    st.lists(st.integers(0, 23), min_size=1, max_size=4),
    st.floats(0.1, 0.9),
    st.integers(0, 99),
)
def test_a_share_of_the_places_is_hidden_and_told_and_the_rest_is_shown(form, lengths, share, seed):
    random = torch.Generator().manual_seed(seed)
    present = torch.tensor([length > 0 for length in lengths])
    if form == "grid":
        values, mask = torch.rand(len(lengths), 2, 11, 11, generator=random), None
        places = torch.where(present, 9, 0)
    else:
        mask = torch.arange(24) < torch.tensor(lengths)[:, None]
        values = torch.rand(len(lengths), 24, 3, generator=random) if form == "frames" else None
        values = torch.randint(5, (len(lengths), 24), generator=random) if values is None else values
        places = torch.tensor([length // 4 if form == "frames" else length for length in lengths])
    found = hide(form, values, mask, present, share, random)
    expected = [min(max(round(int(p) * share), 1), int(p) - 1) if p > 1 else 0 for p in places]
    assert found.told_BK.sum(1).tolist() == pytest.approx(expected, abs=1)
    assert all(0 < told < p if p > 1 else told == 0 for told, p in zip(found.told_BK.sum(1), places, strict=True))
    changed = found.values != values
    per_place = {"grid": 2 * 16, "frames": 4 * 3, "ids": 1}[form]
    for n, row in enumerate(changed.flatten(1).sum(1).tolist()):
        assert row <= int(found.told_BK[n].sum()) * per_place
    if form == "frames":
        known = torch.cat([values[n, : 4 * p].flatten() for n, p in enumerate(places.tolist())] or [values[:0]])
        for n, k in found.told_BK.nonzero().tolist():
            at = int(found.at_BK[n, k])
            assert changed[n, 4 * at : 4 * at + 4].all()
            told = found.wanted[n, k] * known.std(correction=0) + known.mean()
            torch.testing.assert_close(told, values[n, 4 * at : 4 * at + 4].flatten())
    if form == "ids":
        for n, k in found.told_BK.nonzero().tolist():
            assert found.wanted[n, k] == values[n, int(found.at_BK[n, k])]


def test_what_is_hidden_is_told_and_what_belongs_together_is_found(pairs):
    task = task_of(pairs)
    state = torch.get_rng_state()
    found = pretrain(task, pairs.take(range(64)), replace(FEW, epochs=40))
    assert torch.equal(torch.get_rng_state(), state)
    assert set(found.before) == {"contrastive_image_speech", "masked_image", "masked_speech"}
    assert all(found.after[name] < 0.8 * found.before[name] for name in found.before), (found.before, found.after)
    assert {name.split(".")[0] for name in found.weights} == {"encoders", "projectors"}
    start = new_model(replace(task, start=found.weights))
    plain = new_model(task)
    for name, weight in start.state_dict().items():
        assert torch.equal(weight, found.weights.get(name, plain.state_dict()[name])), name
    alone = new_model(replace(task, start=found.weights, keep=frozenset({"image"})))
    assert torch.equal(alone.state_dict()["projectors.image.1.weight"], found.weights["projectors.image.1.weight"])
    with pytest.raises(ValueError, match=r"pretraining made .* the model has"):
        new_model(replace(task_of(pairs, width=32), start=found.weights))


def test_a_training_starts_from_it(pairs, tmp_path: Path):
    task = task_of(pairs)
    found = pretrain(task, pairs.take(range(64)), FEW)
    plain, started = (
        fit(replace(task, start=start), tmp_path / name).history
        for name, start in (("plain", {}), ("started", found.weights))
    )
    again = pretrain(task, pairs.take(range(64)), FEW)
    assert all(torch.equal(again.weights[name], weight) for name, weight in found.weights.items())
    assert [entry for entry in plain if "loss" in entry] != [entry for entry in started if "loss" in entry]


SHORT = replace(FEW, epochs=4)


def test_what_did_not_end_goes_on_from_its_last_epoch_to_the_same_weights(pairs, tmp_path: Path):
    task, rows, kept = task_of(pairs), pairs.take(range(64)), tmp_path / "pretraining.pt"

    def stop(words: str) -> None:
        if words.startswith("step 12"):  # before the third of four epochs is kept
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain(task, rows, SHORT, stop, kept)
    whole = pretrain(task, rows, SHORT)
    assert_same_when_resumed(task, rows, kept, whole, "going on at step 8 of 16")
    assert_same_when_resumed(task, rows, kept, whole, "going on at step 16 of 16")


def assert_same_when_resumed(task: Any, rows: SampleDataset, kept: Path, whole: Pretrained, words: str) -> None:
    told: list[str] = []
    torch.manual_seed(99)
    found = pretrain(task, rows, SHORT, told.append, kept)
    assert told[0] == words
    assert (found.before, found.after) == (whole.before, whole.after)
    assert found.weights.keys() == whole.weights.keys()
    assert all(torch.equal(found.weights[name], weight) for name, weight in whole.weights.items())


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.training.test_pretraining import SHORT, make_pairs, task_of
from training.pretraining import pretrain

def kill(words):
    if words.startswith("step 12"):
        os.kill(os.getpid(), signal.SIGKILL)

pairs = make_pairs(Path(sys.argv[1]))
pretrain(task_of(pairs), pairs.take(range(64)), SHORT, kill, Path(sys.argv[1]) / "pretraining.pt")
"""


@pytest.mark.slow
def test_what_was_killed_goes_on_to_the_same_weights(pairs, tmp_path: Path):
    root = Path(__file__).parents[2]
    process = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], cwd=root, check=False)
    assert process.returncode == -signal.SIGKILL
    task, rows = task_of(pairs), pairs.take(range(64))
    whole = pretrain(task, rows, SHORT)
    assert_same_when_resumed(task, rows, tmp_path / "pretraining.pt", whole, "going on at step 8 of 16")


def test_rows_that_have_nothing_to_learn_from_are_told(pairs):
    task = task_of(pairs)
    index = pairs.index
    for modality in ("image", "speech"):
        nulls = pa.nulls(len(index), index[f"{modality}_id"].type)
        index = index.set_column(index.column_names.index(f"{modality}_id"), f"{modality}_id", nulls)
    with pytest.raises(ValueError, match="no row has what could be learned from"):
        pretrain(task, SampleDataset(index, pairs.caches), FEW)


SETTINGS = {"masked": 0.2, "contrastive": 0.3, "epochs": 3, "batch_size": 8, "learning_rate": 1e-3, "seed": 1}


@pytest.fixture(scope="module")
def learned(pairs):
    return pretrain(task_of(pairs), pairs.take(range(32)), replace(FEW, epochs=2)).weights


@pytest.mark.parametrize("setting", SETTINGS)
def test_each_setting_decides_the_weights(pairs, learned, setting):
    settings = replace(FEW, **{"epochs": 2, setting: SETTINGS[setting]})
    found = pretrain(task_of(pairs), pairs.take(range(32)), settings).weights
    assert not all(torch.equal(found[name], weight) for name, weight in learned.items())


def test_each_setting_is_tried():
    assert set(SETTINGS) == {field.name for field in fields(PretrainingSettings)}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"masked": 1.0}, "masked is 1.0, expected 0 to 0.9"),
        ({"masked": 0, "contrastive": 0}, "over 0 where contrastive is 0"),
        ({"epochs": 0}, "epochs is 0"),
    ],
)
def test_settings(options, words):
    with pytest.raises(ValueError, match=words):
        PretrainingSettings(**options)


def test_what_nothing_can_learn_from_is_refused():
    forms = {"image": "vectors", "text": "ids"}
    model = complete(ModelSettings(), forms)
    assert learning(model, forms) == ["image"]
    with pytest.raises(ValueError, match="nothing to learn with the encoders image: linear, text: llm"):
        check_pretraining(PretrainingSettings(), model, forms)
    check_pretraining(PretrainingSettings(), complete(ModelSettings(), FORMS), FORMS)
    frozen = complete(ModelSettings(encoders={"image": {"kind": "huggingface", "model": "x"}}), {"image": "grid"})
    with pytest.raises(ValueError, match="nothing to learn"):
        check_pretraining(PretrainingSettings(), frozen, {"image": "grid"})
    trained = {"kind": "huggingface", "model": "x", "train": "lora"}
    lora = complete(ModelSettings(encoders={"image": trained}), {"image": "grid"})
    check_pretraining(PretrainingSettings(), lora, {"image": "grid"})
