"""MLflow's model registry: the logged model, its versions and their aliases. MLflow is imported where it is used.

The registered model is called like its project. `champion` answers; `challenger` was judged last; `champion-int8` and
the like are variants of the champion.
"""

import base64
import contextlib
import importlib.metadata
import io
import json
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from training import descriptions
from training.catalog import OUTPUTS
from training.features import FeatureSettings
from training.mlflow_store import check_artifacts, client, local_path
from training.records import ANSWERS
from training.runs import TAG
from training.schema import MODALITIES
from training.spec import JobSpec, RunSpec, own_code
from training.tracking import provenance
from training.views import Places, views

# What the served model needs beside its own code; versions are those that trained it.
_SERVING = (
    *("filelock", "ftfy", "jieba", "mlflow", "numpy", "opencv-python-headless", "pandas", "peft", "pillow"),
    *("py3langid", "pyarrow", "pyyaml", "regex", "safetensors", "scipy", "simplejpeg", "soundfile"),
    *("soxr", "tokenizers", "torch", "transformers"),
)


def log_model(spec: JobSpec, run: RunSpec, bundle: Path) -> str:
    """Logs the bundle as a pyfunc whose code travels with it, and registers it as a version; returns the version.

    What this run has logged or registered already is not logged or registered again.

    Args:
        bundle: folder with config.json, model.safetensors, processor.json and the tokenizer.
    """
    import mlflow

    active = mlflow.active_run()
    assert active is not None
    store = client(spec.tracking_uri)
    run_id, experiment = active.info.run_id, active.info.experiment_id
    if registered := store.search_model_versions(f"name = '{spec.project}' and run_id = '{run_id}'"):
        return str(registered[0].version)
    logged = [m for m in store.search_logged_models([experiment], f"source_run_id = '{run_id}'") if m.status == "READY"]
    uri = logged[0].model_uri if logged else _log_pyfunc(spec, run, run_id, bundle)
    tags = {TAG + name: value for name, value in provenance(spec, run).items()}
    return _register(uri, spec.project, tags)


def _register(model_uri: str, project: str, tags: Mapping[str, str]) -> str:
    import mlflow

    with contextlib.redirect_stderr(io.StringIO()):  # where MLflow tells of it; the run does, too
        return str(mlflow.register_model(model_uri, project, tags=dict(tags)).version)


def log_variant(source: Path, bundle: Path, packages: Sequence[str], run_id: str) -> None:
    """Logs the bundle of a variant with the active run, as a pyfunc like the version that lies in the folder `source`:
    asked in the same way, with this code and what users' own kinds of it need.

    Args:
        packages: that loading it needs beside those of the version.
    """
    import mlflow
    from mlflow.models import Model
    from mlflow.pyfunc import FLAVOR_NAME, MODEL_CONFIG

    known, search_path = Model.load(str(source)), list(sys.path)
    own = sorted(path for path in (source / "code").iterdir() if path.name not in ("training", "__pycache__"))
    needed = [f"{name}=={importlib.metadata.version(name).partition('+')[0]}" for name in packages]
    listed = (source / "requirements.txt").read_text().splitlines()
    with tempfile.TemporaryDirectory() as folder:
        code = [_copied(path, Path(folder)) for path in (Path(__file__).parent, *own)]
        try:
            mlflow.pyfunc.log_model(
                name="model",
                python_model=str(code[0] / "serving.py"),
                code_paths=[str(path) for path in code],
                artifacts={"bundle": str(bundle)},
                signature=known.signature,
                pip_requirements=sorted({*listed, *needed}),
                model_config=known.flavors[FLAVOR_NAME].get(MODEL_CONFIG),
                metadata={**(known.metadata or {}), "run_id": run_id},
            )
        finally:
            sys.path[:] = search_path


def register_variant(uri: str, project: str, run_id: str, description: str) -> str:
    """Registers what a variant's run has logged as a version, once, with the tags of the run; returns the version."""
    import mlflow

    store = client(uri)
    if registered := store.search_model_versions(f"name = '{project}' and run_id = '{run_id}'"):
        return str(registered[0].version)
    run = store.get_run(run_id)
    (logged,) = store.search_logged_models([run.info.experiment_id], f"source_run_id = '{run_id}'")
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    version = _register(logged.model_uri, project, {n: v for n, v in run.data.tags.items() if n.startswith(TAG)})
    store.update_model_version(project, version, description)
    return version


def _log_pyfunc(spec: JobSpec, run: RunSpec, run_id: str, bundle: Path) -> str:
    import mlflow
    import pandas as pd

    columns, search_path = run.columns, list(sys.path)
    examples = example_row(spec.features, run.several) | dict.fromkeys(columns, "")
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(__file__).parent, *own_code(run.model, spec.features)]
        code = [_copied(path, Path(folder)) for path in paths]
        try:
            logged = mlflow.pyfunc.log_model(
                name="model",
                python_model=str(code[0] / "serving.py"),
                code_paths=[str(path) for path in code],
                artifacts={"bundle": str(bundle)},
                signature=_signature(run),
                input_example=pd.DataFrame(
                    [{name: x for name, x in examples.items() if name in (*run.keep, *columns)}]
                ),
                # Given, since inferring them would load the model in another process for minutes.
                pip_requirements=_requirements(spec, run),
                # What is not named here cannot be said when the model is loaded, either.
                model_config={"dataset_fingerprint": spec.dataset, **ANSWERS, "abstain_below": run.model.abstain_below},
                metadata={"project": spec.project, "dataset_fingerprint": spec.dataset, "run_id": run_id},
            )
        finally:
            sys.path[:] = search_path  # MLflow served the example once, and left its copy of the code on the path
    return str(logged.model_uri)


def _requirements(spec: JobSpec, run: RunSpec) -> list[str]:
    """With the packages of its features, such as those that pretrained encoders need."""
    names = {*_SERVING, *(name for m in run.keep for name in spec.features.featurizer(m).packages)}
    return [f"{name}=={importlib.metadata.version(name).partition('+')[0]}" for name in sorted(names)]


def _copied(code: Path, folder: Path) -> Path:
    """A file or folder of code, copied into `folder` without what Python compiled of it."""
    copy = folder / code.name
    if code.is_dir():
        shutil.copytree(code, copy, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copyfile(code, copy)
    return copy


def _signature(run: RunSpec) -> Any:
    """What the served model takes and gives."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import Array, Object, Property

    output = OUTPUTS.make(run.model.output, {})
    columns: dict[str, Any] = {"model_version": DataType.string, "dataset_fingerprint": DataType.string}
    best = Property("answer", DataType.string), Property("probability", DataType.double)
    said = {"probability": DataType.double, "abstained": DataType.boolean, "best": Array(Object(list(best)))}
    columns = {"prediction": column_type(output.arrow_type), **columns, **said}
    if run.personalization is not None:
        columns["adapter"] = DataType.string
    if output.members:
        parts = {name: {"prediction": column_type(part.arrow_type), **said} for name, part in output.members.items()}
        each = {name: [Property(n, kind, required=False) for n, kind in of.items()] for name, of in parts.items()}
        columns["outputs"] = Object([Property(name, Object(properties)) for name, properties in each.items()])
    return ModelSignature(
        inputs=Schema([ColSpec(DataType.string, n, required=False) for n in (*MODALITIES, *run.columns)]),
        outputs=Schema([ColSpec(kind, name) for name, kind in columns.items()]),
    )


def column_type(answer: pa.DataType) -> Any:
    """MLflow's type for a column of answers.

    Raises:
        ValueError: it has none.
    """
    from mlflow.types import DataType
    from mlflow.types.schema import Array, Object, Property

    if pa.types.is_struct(answer):
        return Object([Property(part.name, column_type(part.type), required=False) for part in answer])
    if pa.types.is_list(answer):
        return Array(column_type(answer.value_type))
    names = {
        pa.string(): DataType.string,
        pa.int64(): DataType.long,
        pa.float64(): DataType.double,
        pa.bool_(): DataType.boolean,
        pa.binary(): DataType.binary,
    }
    if answer not in names:
        raise ValueError(
            f"the output's arrow_type is {answer}, expected {', '.join(map(str, names))}, a list of "
            "one, or a struct of them"
        )
    return names[answer]


def example_row(features: FeatureSettings, several: Mapping[str, Places]) -> dict[str, str]:
    """What a request may hold: a text or vector as it is, a small file of each other modality as base64; of views the
    first one.

    Args:
        several: those of which the model takes several (`training.views`).
    """
    kinds = {name: features.modality(name) for name in MODALITIES}
    examples = {
        name: kind.example().decode() if kind.as_string else base64.b64encode(kind.example()).decode()
        for name, kind in kinds.items()
    }
    named = {name: views(places) for name, places in several.items()}
    return examples | {name: json.dumps({of[0]: examples[name]}) for name, of in named.items() if of}


def alias(uri: str, project: str, name: str) -> str | None:
    """The version that an alias points to."""
    from mlflow.exceptions import MlflowException

    try:
        return str(client(uri).get_model_version_by_alias(project, name).version)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def newest(uri: str, project: str) -> str | None:
    """The version that was registered last."""
    numbers = [int(version.version) for version in client(uri).search_model_versions(f"name = '{project}'")]
    return str(max(numbers)) if numbers else None


def find_version(uri: str, project: str, wanted: str) -> str:
    """The version that a number or an alias names.

    Raises:
        ValueError: there is none; for the champion it says what the gate said of the newest version.
    """
    registered = versions(uri, project)
    for version in registered:
        if wanted in (str(version["version"]), *version["aliases"]):
            return str(version["version"])
    if not registered:
        raise ValueError(f"{project} has no model yet: `triptych run` trains one")
    named = [(str(version["version"]), ", ".join(version["aliases"])) for version in registered]
    there = ", ".join(f"{number} ({aliases})" if aliases else number for number, aliases in named)
    message = f"{project} has no version {wanted!r} (there are: {there})"
    if wanted == "champion":
        newest, why = registered[0]["version"], "; ".join(registered[0]["reasons"]) or "the gate has not judged it"
        message += (
            f". Version {newest}: {why}. `--version {newest}` asks it all the same; `promotion` in the project file "
            "says what a champion must beat"
        )
    raise ValueError(message)


def set_alias(uri: str, project: str, name: str, version: str) -> None:
    client(uri).set_registered_model_alias(project, name, version)


def drop_alias(uri: str, project: str, name: str) -> None:
    client(uri).delete_registered_model_alias(project, name)


def aliases(uri: str, project: str, version: str) -> list[str]:
    return sorted(client(uri).get_model_version(project, version).aliases)


def version_tags(uri: str, project: str, version: str) -> dict[str, str]:
    tags = client(uri).get_model_version(project, version).tags
    return {name.removeprefix(TAG): value for name, value in tags.items() if name.startswith(TAG)}


def tag_version(uri: str, project: str, version: str, tags: Mapping[str, str]) -> None:
    for name, value in tags.items():
        client(uri).set_model_version_tag(project, version, TAG + name, value)


def describe(uri: str, project: str, version: str, of_model: str, of_version: str) -> None:
    """Describes the registered model and one of its versions, in Markdown."""
    store = client(uri)
    store.update_registered_model(project, of_model)
    store.update_model_version(project, version, of_version)


def describe_verdict(uri: str, project: str, version: str, reasons: Sequence[str], is_champion: bool) -> None:
    """Adds to the description of a version what the gate said of it."""
    store = client(uri)
    description = store.get_model_version(project, version).description or ""
    store.update_model_version(project, version, descriptions.judged(description, reasons, is_champion))


def version_run(uri: str, project: str, version: str) -> str:
    """The MLflow run that made a version."""
    return str(client(uri).get_model_version(project, version).run_id)


def fetch_model(uri: str, project: str, version: str, folder: Path | None = None) -> Path:
    """The logged model of a version as a folder on this machine; without `folder` a local one is not copied."""
    import mlflow

    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    target = None if folder is None else str(folder)
    return Path(mlflow.artifacts.download_artifacts(f"models:/{project}/{version}", dst_path=target))


def local_model(uri: str, project: str, version: str, cache: Path) -> Path:
    """The logged model of a version where it lies, if that is on this machine; else as it was fetched into `cache`,
    once for a model."""
    known = client(uri).get_model_version(project, version)
    location = "" if known.model_id is None else client(uri).get_logged_model(known.model_id).artifact_location
    if local_path(location) is not None:
        return fetch_model(uri, project, version)
    check_artifacts(location)
    place = cache / "models" / str(known.model_id)
    if not (place / "MLmodel").is_file():
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent) as temporary:
            fetched = fetch_model(uri, project, version, Path(temporary))
            with contextlib.suppress(OSError):  # another process was faster
                fetched.rename(place)
    return place


def count_look(uri: str, project: str, dataset: str, version: str) -> int:
    """Records that a candidate was judged on a test snapshot; returns how many were. The more, the less it proves."""
    store, tag = client(uri), f"{TAG}looks.{dataset}"
    seen = set(filter(None, store.get_registered_model(project).tags.get(tag, "").split(",")))
    store.set_registered_model_tag(project, tag, ",".join(sorted(seen | {version}, key=int)))
    return len(seen | {version})


def versions(uri: str, project: str) -> list[dict[str, Any]]:
    """Registered versions, the newest first: version, run_id, aliases, metric (the first of its output), value (on the
    test set), n (test rows), majority (the metric of the majority answer), accuracy (the value, if that is the metric),
    figures (all that was measured on the test set with all inputs given), dataset_fingerprint, reasons."""
    from mlflow.exceptions import MlflowException

    store = client(uri)
    try:
        registered = store.get_registered_model(project)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return []
        raise
    rows = []
    for version in store.search_model_versions(f"name = '{project}'"):
        tags = {k.removeprefix(TAG): v for k, v in version.tags.items()}
        metric = tags.get("metric", "accuracy")
        measured = store.get_run(version.run_id).data.metrics
        figures = {name.removeprefix("test_"): x for name, x in measured.items() if name.startswith("test_")}
        value = figures.get(metric)
        rows.append(
            {
                "version": int(version.version),
                "run_id": version.run_id,
                "aliases": sorted(alias for alias, v in registered.aliases.items() if str(v) == str(version.version)),
                "metric": metric,
                "value": value,
                "n": int(figures.get("n", 0)),
                "majority": figures.get(f"majority_{metric}"),
                "figures": {name: figure for name, figure in figures.items() if "/" not in name},
                "accuracy": value if metric == "accuracy" else None,
                "dataset_fingerprint": tags.get("dataset_fingerprint"),
                "reasons": json.loads(tags.get("gate_reasons", "[]")),
            }
        )
    return sorted(rows, key=lambda version: -version["version"])
