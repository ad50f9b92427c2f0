"""What a person reads of experiments, runs, models and versions in MLflow, and in the card of a saved model."""

from collections.abc import Mapping, Sequence

from training.records import TuningReport
from training.spec import JobSpec, RunSpec
from training.tuning_settings import as_yaml

_GATE = "\n\n**The gate**"  # what it said of a version stands from here on


def experiment(spec: JobSpec) -> str:
    return (
        f"Trainings of the project {spec.project}: models that answer `{spec.answers}`, and beside each the baselines "
        f"that it must beat. The registered model is called `{spec.project}`."
    )


def task(spec: JobSpec, run: RunSpec) -> str:
    """What a model answers, from what."""
    return f"Answers `{spec.answers}` (output {run.model.output}) from {_listed(run.keep)}."


def registered_model(spec: JobSpec, run: RunSpec) -> str:
    return f"{task(spec, run)} `champion` is the version that answers, `challenger` the one that was judged last."


def trained_run(spec: JobSpec, run: RunSpec, rows: int) -> str:
    """Of an MLflow run. Args: `rows` it is trained on."""
    role = "The model." if not run.is_baseline else f"A baseline ({run.name}), for the model to beat."
    return " ".join([role, task(spec, run), _training(spec, run, rows), *_dagster(spec)])


def trained_trial(spec: JobSpec, run: RunSpec, rows: int) -> str:
    """Of a trial of a search for settings."""
    return " ".join([f"A {run.name} of a search for settings; see the run above it.", _training(spec, run, rows)])


def tuning(spec: JobSpec, report: TuningReport) -> str:
    """Of a whole search: what was found, and how it is used."""
    settings = f"```yaml\n{as_yaml(report.settings)}```"
    heard = "Nothing is registered and no test row was looked at: a training with these settings is judged by the gate."
    paragraphs = [f"A search for settings: {report.words}.", f"For the project file:\n\n{settings}", heard]
    return "\n\n".join([*paragraphs, *_dagster(spec)])


def version(spec: JobSpec, run: RunSpec, rows: int, metrics: Mapping[str, float | None]) -> str:
    """Of a registered version, before the gate has judged it."""
    return "\n\n".join([task(spec, run), _training(spec, run, rows), _figures(metrics), *_dagster(spec)])


def judged(description: str, reasons: Sequence[str], is_champion: bool) -> str:
    """The description of a version with what the gate said of it."""
    outcome = "champion" if is_champion else "not champion"
    said = "".join(f"\n- {reason}" for reason in reasons)
    return f"{description.partition(_GATE)[0]}{_GATE} ({outcome}):\n{said}"


def card(spec: JobSpec, run: RunSpec, rows: int, metrics: Mapping[str, float | None], run_id: str) -> str:
    """README.md of a saved model: Hugging Face's head, and in words and code what it is and how it is asked."""
    inputs = ", ".join(f'"{modality}": ...' for modality in run.keep)
    return _CARD.format(
        project=spec.project,
        task=task(spec, run),
        training=_training(spec, run, rows),
        figures=_figures(metrics),
        inputs=inputs,
        listed=_listed(run.keep),
        columns=_columns(run.model.columns),
        uri=spec.tracking_uri if "@" not in spec.tracking_uri else "...",  # no password
        run_id=run_id,
    )


def _training(spec: JobSpec, run: RunSpec, rows: int) -> str:
    epochs = f"{run.training.epochs:g} {'epoch' if run.training.epochs == 1 else 'epochs'}"
    return (
        f"Trained on {rows:,} samples of dataset `{spec.dataset}` (version {spec.version} of the table), "
        f"{epochs}; language model `{run.model.llm}`, fusion `{run.model.fusion}`."
    )


def _figures(metrics: Mapping[str, float | None]) -> str:
    """The metrics with their intervals (`records.EvaluationRow.figures`), and what the first is to be seen beside."""
    beside = ("majority_", "shuffled_")
    shares = {n.removesuffix("linear_share").rstrip("."): x for n, x in metrics.items() if n.endswith("linear_share")}
    names = [n for n in metrics if n not in ("n", "low", "high") and not n.startswith(beside)]
    names = [name for name in names if not name.endswith("linear_share")]
    names = [name for name in names if not name.endswith(("_low", "_high"))]
    # Of several answers, the first metric of each (NAME.METRIC), or there would be dozens.
    first = {name.rpartition(".")[0]: name for name in reversed(names)}
    names = [name for name in names if "." not in name or first[name.rpartition(".")[0]] == name]
    listed = []
    for name in names:
        low, high = (metrics.get(end if name == names[0] else f"{name}_{end}") for end in ("low", "high"))
        if (value := metrics[name]) is not None:
            interval = "" if low is None or high is None else f" [{low:.4f}, {high:.4f}]"
            listed.append(f"{name.replace('_', ' ')} {value:.4f}{interval}")
    said = [f"On {metrics.get('n') or 0:,} test samples, all inputs given: {', '.join(listed) or 'not measured'}"]
    if any("[" in figure for figure in listed):
        said[0] += " (95 % intervals)"
    for name, words in zip(beside, ("the majority answer's", "with the soft tokens of another row"), strict=True):
        if listed and (value := metrics.get(f"{name}{names[0]}")) is not None:
            said.append(f"{words} {value:.4f}")
    if shares:
        told = ", ".join(f"{share or 0:.0%}{name and f' ({name})'}" for name, share in shares.items())
        said.append(f"of an answer, the linear model of the vectors gives {told}")
    return "; ".join(said) + "."


def _dagster(spec: JobSpec) -> list[str]:
    url = spec.tags.get("dagster_url")
    return [f"[The run in Dagster]({url})"] if url else []


def _listed(modalities: Sequence[str]) -> str:
    *others, last = modalities
    return f"{', '.join(others)} and {last}, or any of them" if others else last


def _columns(names: Sequence[str]) -> str:
    if not names:
        return ""
    said = ", ".join(f'"{name}": "..."' for name in names)
    return (
        f" The prompt names columns beside them: `answerer.read(inputs, {{{said}}})`, and further columns of MLflow's "
        "data frame; one that is not given is empty."
    )


_CARD = """---
library_name: transformers
tags: [triptych, multimodal]
---
# {project}

{task} {training} {figures}

The folder holds the model (`config.json`, `model.safetensors`; in `base`, where there is one, the language model that
was not trained whole), its tokenizer, and the processor that makes tensors of raw inputs (`processor.json`). Inputs
are {listed}: a text as it is, media as the bytes of a file.{columns}

With the code that trained it (a checkout of Triptych, or `code/` of the logged model, on PYTHONPATH), where FOLDER is
this folder:

```python
from pathlib import Path

from training.score import Answerer

answerer = Answerer(Path("FOLDER"))
row = answerer.read({{{inputs}}})
print([answer.prediction for answer in answerer([row])])  # answer.probability says how sure it is
```

The bare network, for `AutoModel` and `AutoConfig` of transformers:

```python
import training.model
from transformers import AutoModel

model = AutoModel.from_pretrained("FOLDER")
```

With MLflow, which brings the code along; media as base64:

```python
import mlflow
import pandas as pd

mlflow.set_tracking_uri("{uri}")
model = mlflow.pyfunc.load_model("runs:/{run_id}/model")
print(model.predict(pd.DataFrame([{{{inputs}}}])).to_dict("records"))
```
"""
