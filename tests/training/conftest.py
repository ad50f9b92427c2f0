"""A tiny real model, as a bundle on disk and as a version in a registry: made once, random weights, never trained. And
one throw-away kind of each family, in a module of a user's own."""

import base64
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from training.catalog import OUTPUTS
from training.family import Choice
from training.features import FeatureSettings
from training.settings import MediaLimits, ModelSettings, TrainingSettings
from training.spec import JobSpec, RunSpec, plan_runs

FEATURES = FeatureSettings(
    image={"size": 16, "color": "grey"},
    speech={"sample_rate": 8000, "mels": 16, "coefficients": 8, "max_seconds": 5},
)
MODEL = ModelSettings(width=16, layers=1, heads=2, tokens=2, max_new_tokens=4)
MODALITIES = ("text", "image", "speech")

# One kind of each family, as a user writes them: `own_kinds:OwnFusion` and so on.
OWN_KINDS = '''
import pyarrow as pa
import torch
from torch import nn

from training.encoders.base import Encoder, all_real
from training.featurizers.pixels import PixelsFeaturizer
from training.fusions.base import Fusion
from training.metrics import Metric
from training.objectives.base import Objective
from training.outputs.base import Output


class OwnFeaturizer(PixelsFeaturizer):
    """Pictures as ours, so that it says nothing but that it is another's."""


class OwnGridEncoder(Encoder):
    def __init__(self, source, shape):
        super().__init__(source, shape)
        self.tokens, self.linear = shape.tokens, nn.Linear(source.width, shape.width)

    def forward(self, values, mask=None):
        return all_real(self.linear(values.mean((2, 3)))[:, None].expand(-1, self.tokens, -1))


class OwnFramesEncoder(OwnGridEncoder):
    def forward(self, values, mask):
        mean = (values * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return all_real(self.linear(mean)[:, None].expand(-1, self.tokens, -1))


class OwnIdsEncoder(Encoder):
    def __init__(self, source, shape):
        super().__init__(source, shape)
        self.tokens, self.embed = shape.tokens, nn.EmbeddingBag(source.width, shape.width, mode="sum")

    def forward(self, values, mask):
        return all_real(self.embed(values, per_sample_weights=mask.float())[:, None].expand(-1, self.tokens, -1))


class OwnFusion(Fusion):
    def forward(self, tokens_BNTD, mask_BNT):
        return self.filled(tokens_BNTD, mask_BNT).sum(1)


def off_by(label, prediction):
    return 100.0 if prediction is None else abs(label - prediction)


class OwnOutput(Output):
    """A number, so that label, prediction and metric are of another type and direction than ours."""

    metrics = (Metric("absolute_error", off_by, higher_is_better=False),)
    arrow_type = pa.float64()

    def __init__(self, fitted):
        self.mean = fitted.get("mean", 0.0)

    def read(self, label):
        return float(label)

    def fit(self, labels, tokenizer, settings):
        return {"mean": self.constant([float(label) for label in labels])}

    def targets(self, labels, tokenizer):
        return torch.tensor([float(label) for label in labels])

    def language_model(self):
        from transformers import AutoModel

        return AutoModel

    def head(self, width):
        return nn.Linear(width, 1)

    def logits(self, model, embeddings, mask, targets):
        return model.head(model.read(embeddings, mask).last_hidden_state[:, -1])[:, 0] + self.mean

    def loss(self, logits, targets, smoothing=0.0):
        return nn.functional.mse_loss(logits.float(), targets)

    def answers(self, asked):
        return self.logits(asked.model, asked.embeddings_BSD, asked.mask_BS, None).tolist()

    def constant(self, labels):
        return sum(labels) / len(labels)


class OwnObjective(Objective):
    """A projection of x_m finds the image's tokens again."""

    def __init__(self, config, training, options):
        super().__init__(config, training, options)
        self.projection = nn.Linear(config.llm_config.hidden_size, config.width)

    def forward(self, output, batch):
        there = output.masks["image"].any(1)
        wanted = output.tokens["image"].mean(1).detach()
        return {"find_image": (self.projection(output.x_m.mean(1)) - wanted)[there].square().sum()}
'''


@pytest.fixture(scope="session")
def own_kinds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The file of the module `own_kinds`, importable here."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_kinds.py").write_text(OWN_KINDS)
    sys.path.insert(0, str(folder))
    yield folder / "own_kinds.py"
    sys.path.remove(str(folder))
    sys.modules.pop("own_kinds", None)


@pytest.fixture(scope="session")
def rows() -> list[dict[str, Any]]:
    return featurized(FEATURES)


@pytest.fixture(scope="session")
def unlike_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with all modalities, no two with the same contents; a label names those of its row."""
    full, random = rows[-1], np.random.default_rng(0)

    def row(n: int) -> dict[str, Any]:
        given = {
            "text": {"text": f"What do you see? {n}"},
            "image": {"pixels": random.integers(0, 255, full["image"]["pixels"].shape, np.uint8)},
            "speech": {"log_mel": random.normal(0, 1, full["speech"]["log_mel"].shape).astype(np.float32)},
        }
        return full | {m: full[m] | given[m] for m in MODALITIES} | {"sample_id": str(n), "label": str(n)}

    return [row(n) for n in range(12)]


def featurized(features: FeatureSettings) -> list[dict[str, Any]]:
    """A row for every non-empty subset of the modalities, featurized from real media; labels 7 and 9."""
    from training.model_registry import example_row
    from training.processor import Processor

    processor, media = Processor(features, MediaLimits()), example_row(features, {})
    full = {m: value if m == "text" else base64.b64decode(value) for m, value in media.items()}
    subsets = [s for size in (1, 2, 3) for s in itertools.combinations(MODALITIES, size)]
    return [
        processor.row(**{m: full[m] for m in subset}) | {"sample_id": str(n), "label": "79"[n % 2], "epoch": 0}
        for n, subset in enumerate(subsets)
    ]


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of the encoder of a family of `tiny_encoders`, made once."""
    from tests.training import tiny_encoders

    made: dict[str, Path] = {}

    def of(family: str) -> Path:
        if family not in made:
            made[family] = tiny_encoders.make(family, tmp_path_factory.mktemp(family))
        return made[family]

    return of


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    from training.tokenizer import fit_tokenizer

    return fit_tokenizer(["What do you see?", "seven", "nine", "7", "9"], 300)


@pytest.fixture(scope="session")
def make_model(tokenizer: Any) -> Callable[..., Any]:
    """New tiny models, with the batch of all rows as its training would see them."""
    import torch

    from training.building import build_model
    from training.collator import make_collator

    def make(
        rows: list[dict[str, Any]], features: FeatureSettings = FEATURES, **settings: Any
    ) -> tuple[Any, dict[str, Any]]:
        torch.manual_seed(0)
        chosen = replace(MODEL, **settings)
        labels = [label_of(chosen.output, label) for label in ("7", "9")]
        model = build_model(chosen, features, tokenizer, MODALITIES, labels)
        collator = make_collator(model, tokenizer, features)
        rows = [row | {"label": label_of(chosen.output, row["label"])} for row in rows]
        return model, replace(collator, targets=partial(model.output.targets, tokenizer=tokenizer))(rows)

    return make


@pytest.fixture(scope="session")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Samples of vectors: see `tiny_vectors`."""
    from tests.training import tiny_vectors

    return tiny_vectors.make(tmp_path_factory.mktemp("vectors"))


def label_of(output: Choice, label: str) -> str:
    """The label as the output reads it: where it is several, of each of them; where it is what a sample has, contents
    of that name; what is an object already stays."""
    made = OUTPUTS.make(output, {})
    if label.startswith("{"):
        return label
    if not made.has_labels:
        return str(made.own_label(dict.fromkeys(MODALITIES, label)))
    return json.dumps(dict.fromkeys(made.members, label)) if made.members else label


@pytest.fixture(name="label_of", scope="session")
def label_of_fixture() -> Callable[[Choice, str], str]:
    return label_of


def save_bundle(folder: Path, modalities: tuple[str, ...] = MODALITIES, **settings: Any) -> Path:
    import torch

    from training.building import build_model
    from training.processor import Processor
    from training.tokenizer import fit_tokenizer

    torch.manual_seed(0)
    tokenizer = fit_tokenizer(["What do you see?", "seven", "nine"], 300)
    model = build_model(replace(MODEL, **settings), FEATURES, tokenizer, modalities, ["seven", "nine"])
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    Processor(FEATURES, MediaLimits()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bundle(tmp_path_factory.mktemp("model") / "bundle")


@pytest.fixture(scope="session")
def make_spec(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[JobSpec, RunSpec]]:
    """Specifications of trainings that share one MLflow store: making a store takes seconds."""
    home = tmp_path_factory.mktemp("home")

    def make(project: str, dataset: str = "0123456789abcdef", seed: int = 0) -> tuple[JobSpec, RunSpec]:
        run = plan_runs(MODEL, TrainingSettings(epochs=10, seed=seed), FEATURES, MODALITIES, dataset)[0]
        spec = JobSpec(
            project=project,
            lake=str(home / "lake"),
            storage_options={},
            dataset=dataset,
            version=7,
            feature_fingerprints={},
            features=FEATURES,
            limits=MediaLimits(),
            tracking_uri=f"sqlite:///{home / 'mlflow.db'}",
            artifacts=str(home / "artifacts"),
            cache=str(home / "cache"),
            checkpoints=str(home / "checkpoints"),
            tags={"dagster_run_id": "run-of-dagster"},
            runs=(run,),
        )
        return spec, run

    return make


@pytest.fixture(scope="session")
def logged(bundle: Path, make_spec: Callable[..., tuple[JobSpec, RunSpec]]) -> Path:
    """The folder of a registered version, fetched as a server would."""
    from training import model_registry, tracking

    spec, run = make_spec("served")
    with tracking.open_run(spec, run):
        version = model_registry.log_model(spec, run, bundle)
    return model_registry.fetch_model(spec.tracking_uri, "served", version)
