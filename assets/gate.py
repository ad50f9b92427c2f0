"""The gate at work: fetches predictions on the present test snapshot, judges, moves the alias, writes down why."""

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from assets import pipeline
from assets.contents import attach_data, portions
from assets.lake import Lake
from assets.settings import Project
from assets.sources.base import Source
from training.schema import MODALITIES, PREDICTIONS, RAW, fingerprint, subset_name
from training.settings import to_dict

_ROWS = 256  # test rows that are held at once, if their media are small


def gate(context: dg.AssetExecutionContext, project: Project) -> dict[str, Any]:
    """Decides about the version of the present dataset and settings; asked the same again, it answers as before.

    Returns:
        version, champion before and after, reasons, aliases, and how often this test snapshot was looked at.
    """
    from training import model_registry, tracking
    from training.comparison import decide

    uri, name = project.mlflow_uri, project.name
    snapshot = pipeline.present_snapshot(pipeline.open_lake(project))
    run, *baselines = pipeline.plan(project)
    report = tracking.find_report(uri, name, run.fingerprint)
    if report is None:
        raise ValueError("the model of the present dataset and settings has not been trained: materialize it first")
    version, before = str(report["version"]), model_registry.alias(uri, name, "champion")
    tags = model_registry.version_tags(uri, name, version)
    singles_by = {baseline.name: baseline.fingerprint for baseline in baselines if baseline.name in project.modalities}
    asked = fingerprint("gate", snapshot.fingerprint, before, to_dict(project.promotion), singles_by)
    if before != version and tags.get("gate_asked") != asked:
        full = subset_name(project.modalities)
        singles = {single: _recorded(uri, name, named, single) for single, named in singles_by.items()}
        own, theirs = _recorded(uri, name, run.fingerprint, full), None
        if before is not None:
            if model_registry.version_tags(uri, name, before).get("dataset_fingerprint") == snapshot.fingerprint:
                theirs = tracking_predictions(uri, model_registry.version_run(uri, name, before), full)
            else:  # another snapshot, perhaps other features: both answer the present raw rows, each by its own code
                context.log.info(f"scoring champion {before} and challenger {version} on the present test snapshot")
                theirs, own = (score(project, which) for which in (before, version))
        if (now := model_registry.alias(uri, name, "champion")) != before:  # scoring takes minutes
            raise RuntimeError(
                f"the champion became version {now} while version {version} was judged against {before or 'none'}: "
                "materialize champion again"
            )
        model_registry.set_alias(uri, name, "challenger", version)
        decision = decide(own, theirs, singles, project.promotion)
        # All that was found is written before the alias moves, and what was asked last: a process killed in between
        # has either not judged, or leaves a verdict that the next one carries out.
        tags = {
            "gate_reasons": json.dumps(decision.reasons),
            "test_looks": str(model_registry.count_look(uri, name, snapshot.fingerprint, version)),
            "gate_verdict": "promote" if decision.promote else "keep",
            "gate_asked": asked,
        }
        model_registry.tag_version(uri, name, version, tags)
    if tags.get("gate_verdict") == "promote":
        model_registry.set_alias(uri, name, "champion", version)
        # Once: a person who then takes the alias back is not overruled by the next run.
        model_registry.tag_version(uri, name, version, {"gate_verdict": "promoted"})
    return {
        "version": int(version),
        "champion_before": before or "none",
        "champion": model_registry.alias(uri, name, "champion") or "none",
        "aliases": model_registry.aliases(uri, name, version),
        "reasons": json.loads(tags.get("gate_reasons", "[]")) or ["is the champion already"],
        "test_looks": int(tags.get("test_looks", 0)),
    }


def tracking_predictions(uri: str, run_id: str, subset: str) -> pa.Table:
    """What a run answered on its test set, with the inputs of `subset`."""
    from training.tracking import read_artifact

    table = pq.read_table(pa.BufferReader(read_artifact(uri, run_id, "predictions.parquet"))).cast(PREDICTIONS)
    return table.filter(pc.equal(table["subset"], subset))


def _recorded(uri: str, project: str, fingerprint: str, subset: str) -> pa.Table:
    from training.tracking import find_run

    run_id = find_run(uri, project, fingerprint)
    if run_id is None:
        raise ValueError(f"{subset} has not been trained on the present dataset: materialize baselines and model first")
    return tracking_predictions(uri, run_id, subset)


def score(project: Project, version: str) -> pa.Table:
    """Predictions of a registered version on the present test rows, from raw media, in a process of its own.

    The process imports the code that was logged with the version, so its own processor makes its features.

    Raises:
        RuntimeError: the process failed; the message carries the end of its output.
    """
    with tempfile.TemporaryDirectory() as temporary:
        rows, answers = Path(temporary) / "rows.parquet", Path(temporary) / "answers.parquet"
        write_raw(pipeline.open_lake(project), rows, "test", project.make_sources())
        run_version(project, version, rows, answers)
        table = pq.read_table(answers)
    subset = pa.array([subset_name(project.modalities)] * table.num_rows, pa.string())
    return table.append_column("subset", subset).select(PREDICTIONS.names).cast(PREDICTIONS)


def run_version(project: Project, version: str, rows: Path, answers: Path) -> None:
    """Answers raw rows (a Parquet file with text, image, speech) with a registered version's own code."""
    from training.model_registry import fetch_model
    from training.score import score_command

    folder = fetch_model(project.mlflow_uri, project.name, version, rows.parent / f"model_{version}")
    command, environment = score_command(folder, rows, answers)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"version {version} of {project.name} could not answer:\n{done.stderr.strip()[-2000:]}")


def write_raw(lake: Lake, path: Path, split: str, sources: dict[str, Source]) -> None:
    """The raw inputs of a split as Parquet: sample_id, label, text, image, speech; a portion of rows at a time."""
    names = [f"{m}_item" for m in MODALITIES]
    ids = ", ".join(f"{m}_id" for m in MODALITIES)
    wanted = f"FROM samples WHERE split = $split AND coalesce({ids}) IS NOT NULL"
    query = f"SELECT sample_id, label, {', '.join(names)} {wanted} ORDER BY sample_id"
    samples = lake.sql(query, {"split": split}).to_pylist()
    given = f"SELECT unnest([{', '.join(names)}]) {wanted}"
    listed = lake.sql(f"SELECT * FROM manifest WHERE item_id IN ({given})", {"split": split})
    at = {item: n for n, item in enumerate(listed["item_id"].to_pylist())}
    bytes_of = listed["size"].to_pylist()
    sizes = [sum(bytes_of[at[row[name]]] for name in names if row[name]) for row in samples]
    with pq.ParquetWriter(path, RAW, compression="NONE") as writer:
        for part in portions(samples, sizes, _ROWS):
            items = sorted({at[row[name]] for row in part for name in names if row[name]})
            data = {item["item_id"]: item for item in attach_data(listed.take(items), sources).to_pylist()}
            columns: dict[str, list[Any]] = {field: [row[field] for row in part] for field in ("sample_id", "label")}
            for m in MODALITIES:
                found = [data.get(row[f"{m}_item"]) or {} for row in part]
                columns[m] = [item.get("text" if RAW.field(m).type == pa.large_string() else "data") for item in found]
            writer.write_table(pa.table(columns, schema=RAW))
