"""What a silo learns in a round from rows of its own, and what it says of it: real small trainings, without a wire."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.training.test_mixing import MODEL, TOKENIZER
from tests.training.tiny_vectors import FEATURES, MODALITIES
from training.catalog import AGGREGATIONS, COMBINATIONS
from training.data import SampleDataset
from training.family import Choice
from training.federation import private
from training.federation.board import Update
from training.federation.local import LocalTraining
from training.federation.parts import ALL, arrays, combined, learned_names, part_of, shared_tensors
from training.federation.private import Spent
from training.federation.settings import FederationSettings, PrivacySettings
from training.federation.wire import Task
from training.settings import TrainingSettings
from training.train import TrainingTask

SETTINGS = FederationSettings(silos=("a", "b", "c"), modalities=MODALITIES, rounds=4, epochs=2.0)
TRAINING = TrainingSettings(batch_size=4, epochs=8, learning_rate=5e-3, evaluations=0)


def silo(
    rows: SampleDataset, numbers: range, folder: Path, settings: FederationSettings = SETTINGS, images: bool = True
) -> LocalTraining:
    own = rows.take(list(numbers))
    if not images:
        index = own.index.set_column(own.index.schema.get_field_index("image_id"), "image_id", [[None] * len(own)])
        own = SampleDataset(index.cast(own.index.schema), {m: c for m, c in own.caches.items() if m != "image"})
    task = TrainingTask(
        model=replace(MODEL, linear_share=0.0),
        training=TRAINING,
        features=FEATURES,
        train=own,
        validation=rows,
        tokenizer=TOKENIZER,
        fitted={"classes": ["high", "low"]},
        reads=MODALITIES,
    )
    return LocalTraining(task, settings, settings.rounds, folder, Spent(folder / "privacy.json"))


@pytest.mark.slow
def test_silos_together_learn_what_each_modality_is_worth(vectors: SampleDataset, tmp_path: Path) -> None:
    parts = range(0, 11), range(11, 22), range(22, 32)
    silos = [silo(vectors, part, tmp_path / str(n), images=n != 2) for n, part in enumerate(parts)]
    network = silos[0].network
    weights, learned = arrays(shared_tensors(network)), learned_names(network)
    combination, aggregation = COMBINATIONS.make(Choice("krum")), AGGREGATIONS.make(Choice("fedavg"))
    before, _ = silos[0].judge(weights)
    for number in range(1, SETTINGS.rounds + 1):
        taught = [one.teach(weights, Task(number=number, judged=number == 1)) for one in silos]
        updates = [Update(str(n), *one) for n, one in enumerate(taught)]
        if number == 1:
            assert taught[0].learned.rows == {ALL: 11, "text": 11, "image": 8, "speech": 11}
            assert taught[2].learned.rows == {ALL: 10, "text": 10, "speech": 10}
            assert {part_of(name) for name in taught[0].changes} == {ALL, *MODALITIES}
            assert "image" not in {part_of(name) for name in taught[2].changes}
            assert (taught[0].learned.right, taught[0].learned.validated) == (before, 32)
            assert math.isfinite(taught[0].learned.loss or math.nan)
        weights = aggregation.step(weights, combined(weights, updates, combination, learned), learned)
    after, of = silos[0].judge(weights)
    assert of == 32 and after >= 30 > before


def test_a_silo_learns_the_same_from_the_same_weights(vectors: SampleDataset, tmp_path: Path) -> None:
    one, two = (silo(vectors, range(8), tmp_path / name) for name in ("one", "two"))
    weights = arrays(shared_tensors(one.network))
    two.teach(weights, Task(number=2))  # what it did before is nothing to it
    first, second = one.teach(weights, Task(number=1)), two.teach(weights, Task(number=1))
    for name, change in first.changes.items():
        np.testing.assert_array_equal(change, second.changes[name])
    held = replace(SETTINGS, aggregation=Choice("fedprox", {"mu": 50.0}))
    near = silo(vectors, range(8), tmp_path / "near", held).teach(weights, Task(number=1))

    def way(changes: dict[str, np.ndarray]) -> float:
        return sum(float((x**2).sum()) for name, x in changes.items() if name in learned_names(one.network))

    assert way(near.changes) < 0.7 * way(first.changes)


def test_a_row_moves_the_gradient_no_further_than_clip(vectors: SampleDataset, tmp_path: Path) -> None:
    network = silo(vectors, range(8), tmp_path).network.train()
    trained = [p for p in network.parameters() if p.requires_grad]
    random = torch.Generator().manual_seed(0)
    for size in (1e-3, 1.0, 1e4):
        gradients = [size * torch.randn(p.shape, generator=random) for p in trained]
        sums = [torch.zeros_like(p) for p in trained]
        private._add(sums, gradients, clip=0.5)
        assert float(torch.stack([s.norm() for s in sums]).norm()) <= 0.5 * (1 + 1e-5)
    bad = [torch.full_like(p, torch.nan) for p in trained]
    private._add(sums := [torch.zeros_like(p) for p in trained], bad, clip=0.5)
    assert not any(s.any() for s in sums)


@pytest.mark.slow
def test_private_rounds_say_what_they_spend_and_end_when_it_is_spent(vectors: SampleDataset, tmp_path: Path) -> None:
    accountants = pytest.importorskip("opacus.accountants")
    privacy = PrivacySettings(noise=2.0, most=4.5, delta=1e-3)
    hidden = replace(SETTINGS, privacy=privacy, epochs=1.0)
    here = silo(vectors, range(16), tmp_path, hidden)
    weights = arrays(shared_tensors(here.network))
    taught = here.teach(weights, Task(number=1, judged=False))
    known = accountants.RDPAccountant()
    for _ in range(4):
        known.step(noise_multiplier=2.0, sample_rate=0.25)
    assert taught.learned.epsilon == pytest.approx(known.get_epsilon(1e-3))
    assert taught.learned.loss is None, "a loss would tell of rows past the noise"
    statistics = [name for name in taught.changes if "running" in name]
    assert statistics and not any(taught.changes[name].any() for name in statistics)
    again = silo(vectors, range(16), tmp_path, hidden)  # started anew, as after a kill
    other = again.teach(weights, Task(number=1))
    assert (other.learned.epsilon or 0) > taught.learned.epsilon
    assert any((other.changes[n] != taught.changes[n]).any() for n in taught.changes), "noise is never the same"
    with pytest.raises(ValueError, match=r"would bring epsilon to .*, and federation.privacy.most is 4.5"):
        for number in range(2, 100):
            again.teach(weights, Task(number=number))
