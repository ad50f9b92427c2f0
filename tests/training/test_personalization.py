"""Adapters of groups: what they learn, whose rows they touch, which of them are kept, and that they travel."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from tests.training.conftest import save_bundle
from tests.training.tiny_vectors import FEATURES
from training.collator import make_collator
from training.data import SampleDataset
from training.family import Choice
from training.model import FusionModel
from training.personalization import GroupAdapters, add_adapters, personalize
from training.personalization_settings import PersonalizationSettings, check_personalization
from training.score import Answerer, answer_batch
from training.serving import ServedModel
from training.settings import ModelSettings, TrainingSettings, complete
from training.tokenizer import fit_tokenizer
from training.train import TrainingTask, fit, predict

TOKENIZER = fit_tokenizer(["high", "low"], 300)
OTHER = {"low": "high", "high": "low"}
SITES = ("plain", "other way round", "noise")


def with_sites(vectors: SampleDataset) -> SampleDataset:
    """The samples with a column `site`: of one the labels are the other way round, of one they mean nothing."""
    random, index = np.random.default_rng(0), vectors.index
    sites = [SITES[n // 2 % 3] if n < 30 else "few" for n in range(len(vectors))]
    labels = [
        OTHER[label] if site == SITES[1] else str(random.choice([*OTHER])) if site == SITES[2] else label
        for label, site in zip(vectors.labels, sites, strict=True)
    ]
    names = index.column_names
    index = index.set_column(names.index("label"), "label", [labels])
    index = index.append_column("attributes", [[json.dumps({"site": site}) for site in sites]])
    return SampleDataset(index, vectors.caches, ("site",))


@pytest.fixture(scope="module")
def trained(vectors, tmp_path_factory):
    settings = ModelSettings(width=16, layers=1, heads=2, tokens=1, output=Choice("class"), modality_dropout=0.0)
    task = TrainingTask(
        model=replace(complete(settings, FEATURES.forms), linear_share=0.0),
        training=TrainingSettings(epochs=12, batch_size=8, learning_rate=3e-3, evaluations=0),
        features=FEATURES,
        train=vectors,
        validation=vectors.take([]),
        tokenizer=TOKENIZER,
    )
    return fit(task, tmp_path_factory.mktemp("personal")).model


def test_groups_that_gain_have_an_adapter_and_the_others_the_shared_model(trained, vectors, tmp_path):
    rows, told = with_sites(vectors), predict(trained, TOKENIZER, vectors, FEATURES)
    shared = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    settings = PersonalizationSettings(group="site", minimum=4, epochs=100, learning_rate=1e-2)
    found = {one.group: one for one in personalize(trained, TOKENIZER, FEATURES, rows, rows.take([]), settings, print)}
    assert found.keys() == {*SITES}, "the site with two rows has too few"
    one = found[SITES[1]]
    assert (one.rows, one.judged, one.shared, one.own, one.kept) == (8, 2, 0.0, 1.0, True)
    assert all(one.own >= one.shared for one in found.values() if one.kept)
    kept = trained.config.groups["names"]
    assert kept == [name for name in sorted(found) if found[name].kept] and SITES[1] in kept
    assert all(torch.equal(tensor, trained.state_dict()[name]) for name, tensor in shared.items())
    of = [n for n, site in enumerate(rows.column("site")) if site == SITES[1]]
    said = predict(trained, TOKENIZER, rows.take(of), FEATURES)
    assert np.mean([answer == OTHER[told[n]] for answer, n in zip(said, of, strict=True)]) >= 0.9
    assert predict(trained, TOKENIZER, vectors, FEATURES) == told, "who says no site asks the shared model"
    trained.save_pretrained(tmp_path)
    again = FusionModel.from_pretrained(tmp_path)
    assert again.config.groups == trained.config.groups
    assert predict(again, TOKENIZER, rows, FEATURES) == predict(trained, TOKENIZER, rows, FEATURES)


def test_a_new_adapter_changes_nothing_and_one_touches_its_own_rows_only(vectors):
    random = torch.Generator().manual_seed(0)
    tokens_BNTD, group_B = torch.randn(5, 3, 2, 8, generator=random), torch.tensor([0, 1, -1, 1, 0])
    adapters = GroupAdapters(2, 3, 8, 4)
    assert torch.equal(adapters(tokens_BNTD, group_B), tokens_BNTD)
    with torch.no_grad():
        adapters.up_GNRD[1].normal_(generator=random)
        adapters.bias_GND[1].normal_(generator=random)
    changed = adapters(tokens_BNTD, group_B)
    assert torch.equal(changed[[0, 2, 4]], tokens_BNTD[[0, 2, 4]])
    for row in (1, 3):  # by its formula, modality by modality
        for n in range(3):
            added = tokens_BNTD[row, n] @ (adapters.down_GNDR[1, n] @ adapters.up_GNRD[1, n]) + adapters.bias_GND[1, n]
            assert torch.allclose(changed[row, n], tokens_BNTD[row, n] + added, atol=1e-5)
    assert GroupAdapters(2, 3, 8, 0)(tokens_BNTD, group_B).shape == tokens_BNTD.shape, "a bias alone"


def test_a_batch_says_whose_each_row_is(trained, vectors):
    model = FusionModel(trained.config)
    add_adapters(model, "site", ["a", "b"], 2)
    rows = [vectors[n] | {"columns": {"site": site}} for n, site in enumerate(("b", "", "c", "a"))]
    batch = make_collator(model, TOKENIZER, FEATURES)([*rows, vectors[4]])
    assert batch["group"].tolist() == [1, -1, -1, 0, -1]


def test_a_saved_model_is_asked_with_the_group_and_says_whose_adapter_answered(tmp_path):
    folder = save_bundle(tmp_path / "bundle")
    model = FusionModel.from_pretrained(folder)
    add_adapters(model, "speaker", ["ann"], 1)
    with torch.no_grad():
        model.adapters.bias_GND.fill_(2.0)
    model.save_pretrained(folder)
    answerer = Answerer(folder)
    assert answerer.columns == ("speaker",)
    asked = [
        {"text": "What do you see?", "attributes": json.dumps(said)}
        for said in ({"speaker": "ann"}, {"speaker": "bob"}, {})
    ]
    told = answer_batch(answerer, asked, with_x_m=True)
    assert [row["adapter"] for row in told] == ["ann", None, None]
    assert told[1]["x_m"] == told[2]["x_m"] != told[0]["x_m"]
    served = ServedModel()
    served.answerer, served.max_rows, served.abstain_below, served.best = answerer, 9, 0.0, 5
    served.version = served.dataset_fingerprint = None
    answers = served.predict(
        None, pd.DataFrame([{"text": "What do you see?", "speaker": name} for name in ("ann", "bob")])
    )
    assert [name if isinstance(name, str) else None for name in answers["adapter"]] == ["ann", None]
    assert served.about()["columns"] == ["speaker"]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"group": " "}, "group is ' ', expected a column"),
        ({"group": "a", "rank": -1}, "rank is -1, expected 0 to 64"),
        ({"group": "a", "minimum": 1}, "minimum is 1, expected 2 or more"),
        ({"group": "a", "epochs": 0}, "epochs is 0, expected over 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        PersonalizationSettings(**settings)


def test_adapters_of_what_has_no_labels_or_beside_variants_are_refused():
    from training.catalog import OUTPUTS

    settings, output = PersonalizationSettings(group="site"), OUTPUTS.make(Choice("class"), {})
    with pytest.raises(ValueError, match=r"personalization.group is 'site', expected no label \(site\)"):
        check_personalization(settings, output, "class", ["site"], ())
    with pytest.raises(ValueError, match="expected no variants"):
        check_personalization(settings, output, "class", ["answer"], [Choice("int8")])
    with pytest.raises(ValueError, match="expected an output that has labels"):
        check_personalization(settings, OUTPUTS.make(Choice("embedding"), {}), "embedding", (), ())
