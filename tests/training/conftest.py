"""A tiny real model, as a bundle on disk and as a version in a registry: made once, random weights, never trained."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from training.settings import (
    FeatureSettings,
    ImageFeatures,
    MediaLimits,
    ModelSettings,
    SpeechFeatures,
    TrainingSettings,
)
from training.spec import JobSpec, RunSpec, plan_runs

FEATURES = FeatureSettings(
    image=ImageFeatures(size=16, color="grey"),
    speech=SpeechFeatures(sample_rate=8000, mels=16, coefficients=8, max_seconds=5),
)
MODEL = ModelSettings(width=16, layers=1, heads=2, tokens=2, max_new_tokens=4)
MODALITIES = ("text", "image", "speech")


def save_bundle(folder: Path, modalities: tuple[str, ...] = MODALITIES, **settings: Any) -> Path:
    import dataclasses

    import torch

    from training.model import build_model
    from training.processor import Processor
    from training.tokenizer import fit_tokenizer

    torch.manual_seed(0)
    tokenizer = fit_tokenizer(["What do you see?", "seven", "nine"], 300)
    model = build_model(dataclasses.replace(MODEL, **settings), FEATURES, tokenizer, modalities, ["seven", "nine"])
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
        run = plan_runs(MODEL, TrainingSettings(seed=seed), FEATURES, MODALITIES, dataset)[0]
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
