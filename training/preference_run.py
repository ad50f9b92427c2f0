"""The champion learns from preferences: read from the registry, trained on the pairs that the lake has, and what it
learned from kept beside its run. Evaluation, registration and gate are those of any model (`training.job`)."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from training.spec import JobSpec, PreferenceSpec, RunSpec
from training.workers import Log

if TYPE_CHECKING:
    from training.data import SampleDataset
    from training.model import FusionModel
    from training.train import Trained, TrainingTask

REPORT = "preferences.json"  # an artifact of the run: what it learned from, and what came of it


def train_on_preferences(
    spec: JobSpec, wanted: PreferenceSpec, run: RunSpec, task: "TrainingTask", log: Log
) -> "tuple[TrainingTask, Trained]":
    """The reference, trained on the pairs; and the task as its tokenizer makes it.

    Raises:
        ValueError: the reference answers otherwise than the present settings, or no pair is of answers that it can
            give.
    """
    import mlflow
    from transformers import AutoTokenizer

    from training.collator import make_collator
    from training.device import chosen_device
    from training.model_registry import local_model
    from training.preference import learn_preferences
    from training.score import bundle_of
    from training.train import Trained, fit_temperature
    from training.variants.base import load_bundle

    bundle = bundle_of(local_model(spec.tracking_uri, spec.project, wanted.reference, Path(spec.cache)))
    network: FusionModel = load_bundle(bundle, chosen_device())  # type: ignore[assignment]  # no variant
    _check_same(network, run, wanted.reference)
    tokenizer = AutoTokenizer.from_pretrained(bundle, config=network.config, trust_remote_code=False)
    task = replace(task, tokenizer=tokenizer)
    plain = make_collator(network, tokenizer, task.features)
    collate = replace(plain, targets=partial(network.output.targets, tokenizer=tokenizer), seeds=False)
    pairs, rejected, answers = _pairs(spec, wanted, run, network, tokenizer)
    rate = wanted.settings.learning_rate or task.training.learning_rate
    of = network, collate, pairs, rejected, task.train, wanted.settings, rate
    preferred = learn_preferences(*of, lambda words: log(f"{run.name}: {words}"))
    fit_temperature(network, plain, task)
    said = asdict(preferred)
    mlflow.log_metrics({f"preferences_{name}": value for name, value in said.items()})
    mlflow.log_dict({**said, "reference": wanted.reference, "answers": answers}, REPORT)
    return task, Trained(network, [])


def _check_same(network: "FusionModel", run: RunSpec, reference: str) -> None:
    from training.catalog import OUTPUTS

    config = network.config
    there = (OUTPUTS.choose(config.output).kind, set(config.modalities), tuple(config.columns))
    wanted = (run.model.output.kind, set(run.keep), tuple(run.model.columns))
    for name, has, now in zip(("output", "inputs", "columns of the prompt"), there, wanted, strict=True):
        if has != now:
            raise ValueError(
                f"version {reference}, which would learn from preferences, has other {name} than the settings ask for "
                f"({has}, not {now}): a model of the present settings has to be champion first"
            )


def _pairs(
    spec: JobSpec, wanted: PreferenceSpec, run: RunSpec, network: "FusionModel", tokenizer: Any
) -> "tuple[SampleDataset, list[str], list[str]]":
    """Rows labelled with the chosen answers, the rejected ones, and the ids of the answers; without those of which the
    model could not say one. Raises ValueError: none is left."""
    from training.cache import open_table
    from training.data import open_samples
    from training.schema import DATASET, conform

    table = open_table(spec.lake, "preferences", wanted.version, spec.storage_options).to_table()
    table = table.sort_by("answer_id").rename_columns({"answer_id": "sample_id", "chosen": "label"})
    said = zip(table["label"].to_pylist(), table["rejected"].to_pylist(), strict=True)
    can = [n for n, answers in enumerate(said) if _can_say(network, tokenizer, answers)]
    if not can:
        raise ValueError("no feedback is of answers that the model could give: do they name other classes?")
    table = table.take(pa.array(can, pa.int64()))
    where = spec.feature_fingerprints, spec.features, Path(spec.cache), spec.storage_options
    rows = open_samples(conform(table, DATASET), spec.lake, *where, columns=run.columns)
    return rows, table["rejected"].to_pylist(), table["sample_id"].to_pylist()


def _can_say(network: "FusionModel", tokenizer: Any, answers: Sequence[str]) -> bool:
    output = network.output
    return all(output.counted(output.targets([one], tokenizer=tokenizer)) > 0 for one in answers)
