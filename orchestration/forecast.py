"""What a run would make anew, and why: rows of tables, samples and dataset, trainings. Nothing is written."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from assets import pipeline
from assets.dataset import dataset_fingerprint, samples_fingerprint
from assets.featurizing import make_processor, table_of
from assets.lake import Lake
from assets.processing import FEATURES_STEP
from assets.settings import Project
from assets.workload import Work
from training.settings import decisive
from training.spec import NEUTRAL, RunSpec
from training.validation import to_dict

UNCHANGED, CHANGED, UNKNOWN = "unchanged", "changed", "unknown"
_SQLITE = "sqlite:///"


@dataclass(frozen=True)
class Forecast:
    """What a run would make anew; unknown is what depends on contents that have to be decoded first."""

    work: Mapping[str, Work]  # table -> contents whose rows are made anew, and why
    samples: str  # unchanged, changed or unknown
    dataset: str
    trainings: Mapping[str, str]  # the model, and its baselines -> unchanged, unknown, or why it is trained


def forecast(lake: Lake, project: Project, work: Mapping[str, Work], samples: pa.Table | None) -> Forecast:
    """What the run would do.

    Args:
        lake: with the manifest that the run would write in the place of the stored one (`Lake.instead`).
        work: of all modalities.
        samples: those that the run would make, as far as they can be told; null where they cannot be made.
    """
    features = {table_of(m, FEATURES_STEP) for m in project.modalities}
    are_made = {table.partition(".")[0] for table in work}
    is_known = samples is not None and are_made <= features and not project.pair_filters  # whose model has to run
    name = samples_fingerprint(samples) if samples is not None and is_known else None
    there = lake.note("samples").get("fingerprint")
    state = UNKNOWN if name is None else UNCHANGED if name == there else CHANGED
    if lake.version("dataset") is None:
        dataset = UNKNOWN if name is None else CHANGED
        return Forecast(work, state, dataset, {})
    present, processor = pipeline.present_snapshot(lake), make_processor(project)
    now = {m: processor.fingerprint(m) for m in project.modalities}
    wanted = dataset_fingerprint(name, now) if name is not None else None
    if now != present.features or (wanted is not None and wanted != present.fingerprint):
        dataset = CHANGED
    else:
        dataset = UNKNOWN if wanted is None else UNCHANGED
    on = wanted or (present.fingerprint if dataset == UNKNOWN else CHANGED)
    return Forecast(work, state, dataset, _trainings(lake, project, dataset, on))


def _trainings(lake: Lake, project: Project, dataset: str, on: str) -> dict[str, str]:
    """Of the model and each baseline whether it would be trained.

    Args:
        on: fingerprint of the dataset; where it is not known whether it changes that of the present one, where it is
            not known into what it changes one that no training knows.
    """
    if project.mlflow_uri.startswith(_SQLITE) and not Path(project.mlflow_uri.removeprefix(_SQLITE)).exists():
        return {}
    from training.runs import find_run, newest_training

    found = {}
    for run in pipeline.runs_on(lake, project, on):
        try:
            is_there = find_run(project.mlflow_uri, project.name, run.fingerprint) is not None
            last = None if is_there else newest_training(project.mlflow_uri, project.name, run.name)
        except ConnectionError:
            return {run.name: f"{UNKNOWN}: MLflow does not answer"}
        why = ["first training"] if last is None else [*_changes(run, last[0]), *(["dataset"] * (last[1] != on))]
        if is_there:
            found[run.name] = UNKNOWN if dataset == UNKNOWN else UNCHANGED
        else:
            start = "" if project.pretraining is None else "other encoders to start from (pretraining), or "
            found[run.name] = "; ".join(why) or f"{start}another version of the trainer"
    return found


def _changes(run: RunSpec, last: Mapping[str, str]) -> Iterator[str]:
    """The settings of a training that are not those of another, in words. Args: `last` is as MLflow keeps it."""
    from training.tracking import flat

    model = {name: value for name, value in to_dict(run.model).items() if name not in NEUTRAL}
    settings: dict[str, Any] = {"model": model, "training": decisive(run.training)}
    for name, value in flat(settings):
        # What is null the training has found itself.
        if value is not None and name in last and str(value) != last[name]:
            yield f"{name}: {last[name]} -> {value}"
