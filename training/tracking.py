"""Everything that touches MLflow: runs, the logged model, versions, aliases. MLflow is imported where it is used."""

import importlib.metadata
import json
import shutil
import signal
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from training.spec import JobSpec, RunSpec

# What the served model needs beside its own code; versions are those that trained it.
_SERVING = (
    "mlflow numpy pandas pillow pyarrow safetensors soundfile tokenizers torch torchaudio torchvision transformers "
    "regex jieba stopwordsiso"
).split()
_TAG = "triptych."  # before the names of our tags
REPORT = "report.json"  # the artifact that says a training is whole: logged last


def client(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def find_run(uri: str, project: str, fingerprint: str) -> str | None:
    """The finished run of a training, by its fingerprint; None where it was never finished."""
    experiment = client(uri).get_experiment_by_name(project)
    if experiment is None:
        return None
    runs = client(uri).search_runs(
        [experiment.experiment_id],
        f"tags.`{_TAG}training_fingerprint` = '{fingerprint}' and attributes.status = 'FINISHED'",
        order_by=["attributes.start_time DESC"],
        max_results=1,
    )
    return runs[0].info.run_id if runs else None


def find_report(uri: str, project: str, fingerprint: str) -> dict[str, Any] | None:
    """What a finished training reported; None where it has to be done."""
    run_id = find_run(uri, project, fingerprint)
    return None if run_id is None else read_json(uri, run_id, REPORT)


def read_artifact(uri: str, run_id: str, name: str) -> bytes:
    """One file that a run logged."""
    import mlflow

    with tempfile.TemporaryDirectory() as folder:
        path = mlflow.artifacts.download_artifacts(
            run_id=run_id, artifact_path=name, dst_path=folder, tracking_uri=uri
        )
        return Path(path).read_bytes()


def read_json(uri: str, run_id: str, name: str) -> Any:
    return json.loads(read_artifact(uri, run_id, name))


@contextmanager
def open_run(spec: JobSpec, run: RunSpec) -> Iterator[Any]:
    """An MLflow run that is FINISHED only when the block ends well; KILLED on SIGTERM, else FAILED.

    Runs of the same training that a dead process left RUNNING are ended first.
    """
    import mlflow
    from mlflow.data.filesystem_dataset_source import FileSystemDatasetSource  # noqa: F401 - registers sources
    from mlflow.data.http_dataset_source import HTTPDatasetSource  # noqa: F401
    from mlflow.data.meta_dataset import MetaDataset

    mlflow.set_tracking_uri(spec.tracking_uri)
    mlflow.set_registry_uri(spec.tracking_uri)
    if mlflow.get_experiment_by_name(spec.project) is None:
        mlflow.create_experiment(spec.project, artifact_location=spec.artifacts)
    experiment = mlflow.set_experiment(spec.project)
    store = client(spec.tracking_uri)
    same = f"tags.`{_TAG}training_fingerprint` = '{run.fingerprint}' and attributes.status = 'RUNNING'"
    for left in store.search_runs([experiment.experiment_id], same):
        store.set_terminated(left.info.run_id, "KILLED")
    mlflow.set_system_metrics_sampling_interval(2)
    mlflow.set_system_metrics_samples_before_logging(1)
    tags = {**spec.tags, "training_fingerprint": run.fingerprint, "dataset_fingerprint": spec.dataset, "role": run.name}
    previous = signal.signal(signal.SIGTERM, _terminate)
    try:
        with mlflow.start_run(
            run_name=run.name,
            tags={_TAG + name: value for name, value in tags.items()},
            log_system_metrics=not run.is_baseline,
        ) as active:
            source = _source(f"{spec.lake.rstrip('/')}/dataset")
            mlflow.log_input(MetaDataset(source, name=f"{spec.project} v{spec.version}", digest=spec.dataset), "training")
            yield active
    except Terminated:
        mlflow.end_run("KILLED")
        raise
    finally:
        signal.signal(signal.SIGTERM, previous)


class Terminated(SystemExit):
    """SIGTERM came."""


def _terminate(_number: int, _frame: object) -> None:
    raise Terminated(143)


def _source(uri: str) -> Any:
    from mlflow.data.dataset_source_registry import resolve_dataset_source

    return resolve_dataset_source(uri if "://" in uri else Path(uri).resolve().as_uri())


def log_parameters(run: RunSpec, settings: Mapping[str, Any]) -> None:
    """Settings, nested ones with dots."""
    import mlflow

    mlflow.log_params({"keep": "+".join(run.keep), **dict(_flat(settings))})


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def log_model(spec: JobSpec, run: RunSpec, bundle: Path, example: Mapping[str, str | None]) -> str:
    """Logs the bundle as a pyfunc whose code travels with it, and registers it as a version; returns the version.

    A version that this run has registered already is returned as it is.
    """
    import mlflow
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

    active = mlflow.active_run()
    assert active is not None
    store = client(spec.tracking_uri)
    if found := store.search_model_versions(f"name = '{spec.project}' and run_id = '{active.info.run_id}'"):
        return str(found[0].version)
    inputs = Schema([ColSpec(DataType.string, name, required=False) for name in ("text", "image", "speech")])
    outputs = Schema([ColSpec(DataType.string, name) for name in ("prediction", "model_version", "dataset_fingerprint")])
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "training"
        shutil.copytree(Path(__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
        logged = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(package / "serving.py"),
            code_paths=[str(package)],
            artifacts={"bundle": str(bundle)},
            signature=ModelSignature(inputs=inputs, outputs=outputs),
            input_example=pd.DataFrame([example]),
            pip_requirements=[f"{name}=={importlib.metadata.version(name).partition('+')[0]}" for name in _SERVING],
            metadata={"dataset_fingerprint": spec.dataset, "project": spec.project},
        )
    tags = {**spec.tags, "training_fingerprint": run.fingerprint, "dataset_fingerprint": spec.dataset}
    version = mlflow.register_model(
        logged.model_uri, spec.project, tags={_TAG + name: value for name, value in tags.items()}
    )
    return str(version.version)


def alias(uri: str, project: str, name: str) -> str | None:
    """The version that an alias points to."""
    from mlflow.exceptions import MlflowException

    try:
        return str(client(uri).get_model_version_by_alias(project, name).version)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def set_alias(uri: str, project: str, name: str, version: str) -> None:
    client(uri).set_registered_model_alias(project, name, version)


def aliases(uri: str, project: str, version: str) -> list[str]:
    return sorted(client(uri).get_model_version(project, version).aliases)


def version_tags(uri: str, project: str, version: str) -> dict[str, str]:
    tags = client(uri).get_model_version(project, version).tags
    return {name.removeprefix(_TAG): value for name, value in tags.items() if name.startswith(_TAG)}


def tag_version(uri: str, project: str, version: str, tags: Mapping[str, str]) -> None:
    for name, value in tags.items():
        client(uri).set_model_version_tag(project, version, _TAG + name, value)


def version_run(uri: str, project: str, version: str) -> str:
    """The MLflow run that made a version."""
    return client(uri).get_model_version(project, version).run_id


def fetch_model(uri: str, project: str, version: str, folder: Path) -> Path:
    """The logged model of a version as a folder on this machine."""
    import mlflow

    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    return Path(mlflow.artifacts.download_artifacts(f"models:/{project}/{version}", dst_path=str(folder)))


def count_look(uri: str, project: str, dataset: str, version: str) -> int:
    """Records that a candidate was judged on a test snapshot; returns how many were. The more, the less it proves."""
    store, tag = client(uri), f"{_TAG}looks.{dataset}"
    seen = set(filter(None, store.get_registered_model(project).tags.get(tag, "").split(",")))
    store.set_registered_model_tag(project, tag, ",".join(sorted(seen | {version}, key=int)))
    return len(seen | {version})
