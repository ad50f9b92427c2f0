"""The gate at work: fetches predictions on the present test snapshot, judges, moves the alias, writes down why."""

import json
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from assets import pipeline
from assets.contents import portions
from assets.evaluation import fusion_of, majority_answer, recorded, recorded_predictions
from assets.featurizing import make_processor
from assets.lake import Lake, sql_among
from assets.parts import parts_of, read_contents
from assets.settings import Project
from assets.sources.base import Source
from training import catalog
from training.codecs.options import Source as CodecSource
from training.outputs.base import Look
from training.records import Standing, Verdict
from training.schema import MODALITIES, RAW, fingerprint, subset_name, tensor
from training.settings import MediaLimits
from training.spec import RunSpec, shorter_training
from training.validation import to_dict

_ROWS = 256  # test rows that are held at once, if their media are small
_PARTS = ("", "_more", "_views")  # of what a raw row has of a modality


@dataclass(frozen=True)
class Case:
    """What is to be judged: the version of the present dataset and settings, beside the champion of now."""

    dataset: str  # fingerprint
    run: RunSpec  # that made the version
    singles: dict[str, str]  # single modality -> fingerprint of its baseline
    version: str
    champion: str | None

    def question(self, project: Project) -> str:
        """Names all that the answer depends on: the same question is not judged twice."""
        rule = to_dict(project.promotion)
        return fingerprint("gate", self.dataset, self.champion, rule, self.singles, *project.evaluation.sensitive)


def gate(context: dg.AssetExecutionContext, project: Project, learned: tuple[RunSpec, str] | None = None) -> Verdict:
    """Decides about the version of the present dataset and settings; asked the same again, it answers as before.

    Args:
        learned: about this version, and what made it, in its place: a champion that has learned from feedback.
    """
    from training import model_registry

    uri, name = project.mlflow_uri, project.name
    case = _case(project, learned)
    tags = model_registry.version_tags(uri, name, case.version)
    came_from = model_registry.version_tags(uri, name, case.champion) if case.champion else {}
    if came_from.get("preference_of") == case.version:  # a margin would let it take its place back
        why = f"version {case.champion}, which is champion, is what it came to by feedback"
        tags = {"gate_reasons": json.dumps([why])}
    elif case.champion != case.version and tags.get("gate_asked") != case.question(project):
        tags = _judge(context, project, case)
    if tags.get("gate_verdict") == "promote":
        model_registry.set_alias(uri, name, "champion", case.version)
        # Once: a person who then takes the alias back is not overruled by the next run.
        model_registry.tag_version(uri, name, case.version, {"gate_verdict": "promoted"})
    reasons = json.loads(tags.get("gate_reasons", "[]")) or ["is the champion already"]
    if case.champion == case.version and tags.get("gate_verdict") == "keep":
        reasons.append("it was refused, and given the alias champion by hand")
    return Verdict(
        version=int(case.version),
        champion_before=case.champion or "none",
        champion=model_registry.alias(uri, name, "champion") or "none",
        aliases=model_registry.aliases(uri, name, case.version),
        reasons=reasons,
        standings=[Standing.from_json(standing) for standing in json.loads(tags.get("gate_standings", "[]"))],
        test_looks=int(tags.get("test_looks", 0)),
    )


def _case(project: Project, learned: tuple[RunSpec, str] | None) -> Case:
    from training import model_registry, runs

    uri, name = project.mlflow_uri, project.name
    snapshot = pipeline.present_snapshot(pipeline.open_lake(project))
    run, *baselines = pipeline.plan(project)
    if learned is None:
        report = runs.find_report(uri, name, run.fingerprint)
        if report is None:
            raise ValueError("the model of the present dataset and settings has not been trained: materialize it first")
        learned = run, str(report.version)
    run, version = learned
    return Case(
        dataset=snapshot.fingerprint,
        run=run,
        singles={baseline.name: baseline.fingerprint for baseline in baselines if baseline.name in project.inputs},
        version=version,
        champion=model_registry.alias(uri, name, "champion"),
    )


def _judge(context: dg.AssetExecutionContext, project: Project, case: Case) -> dict[str, str]:
    """Compares the version with what it must beat; returns the tags that say what came of it."""
    from training import model_registry
    from training.comparison import decide
    from training.evaluate import slices

    uri, name, version = project.mlflow_uri, project.name, case.version
    singles = {single: recorded(project, training, single) for single, training in case.singles.items()}
    ours, theirs = _answers(context, project, case)
    if (now := model_registry.alias(uri, name, "champion")) != case.champion:  # scoring takes minutes
        raise RuntimeError(
            f"the champion became version {now} while version {version} was judged against {case.champion or 'none'}: "
            "materialize champion again"
        )
    model_registry.set_alias(uri, name, "challenger", version)
    training = case.run.fingerprint
    majority, fusion = majority_answer(project, training), fusion_of(project, training)
    output = project.make_output()
    test = pipeline.open_lake(project).sql("SELECT * FROM dataset WHERE split = 'test'")
    parts = slices(test, output, project.evaluation.sensitive)
    decision = decide(ours, theirs, singles, majority, project.promotion, output, fusion, parts)
    # All that was seen is written before the alias moves, and the question last: a process killed in between has
    # either not judged, or leaves a verdict that the next one carries out.
    compared = singles and "best_single_modality" in project.promotion.must_beat
    noted = list(filter(None, [shorter_training(pipeline.plan(project))])) if compared else []
    tags = {
        "gate_reasons": json.dumps(decision.reasons + noted),
        "gate_standings": json.dumps([standing.to_json() for standing in decision.standings]),
        "test_looks": str(model_registry.count_look(uri, name, case.dataset, version)),
        "gate_verdict": "promote" if decision.promote else "keep",
        "gate_asked": case.question(project),
    }
    model_registry.tag_version(uri, name, version, tags)
    return tags


def _answers(context: dg.AssetExecutionContext, project: Project, case: Case) -> tuple[pa.Table, pa.Table | None]:
    """What the version and the champion answer to the same test rows; None where there is no champion.

    Raises:
        RuntimeError: one of them cannot be asked.
    """
    from mlflow.exceptions import MlflowException

    name, full = project.name, subset_name(project.inputs)
    if case.champion is None:
        return recorded(project, case.run.fingerprint, full), None
    if (theirs := _recorded_champion(project, case)) is not None:
        return recorded(project, case.run.fingerprint, full), theirs
    # Another snapshot, perhaps other features: both answer the present raw rows, each by its own code.
    context.log.info(f"scoring champion {case.champion} and challenger {case.version} on the present test snapshot")
    try:
        theirs = score(project, case.champion)
    except (RuntimeError, MlflowException, OSError) as error:
        raise RuntimeError(
            f"the champion cannot be asked, so nothing can be shown to be better: {str(error).strip()}. Give the alias "
            f"`champion` of {name} to a version that answers (MLflow's page of the model), or take it away"
        ) from None
    return score(project, case.version), theirs


def _recorded_champion(project: Project, case: Case) -> pa.Table | None:
    """What the champion answered when it was trained, if that was on the present snapshot and is still there."""
    from mlflow.exceptions import MlflowException

    from training import model_registry

    uri, name, champion = project.mlflow_uri, project.name, str(case.champion)
    if model_registry.version_tags(uri, name, champion).get("dataset_fingerprint") != case.dataset:
        return None
    try:
        run_id = model_registry.version_run(uri, name, champion)
        return recorded_predictions(project, run_id, subset_name(project.inputs))
    except (MlflowException, OSError):  # its run was deleted: its model may answer
        return None


def score(project: Project, version: str) -> pa.Table:
    """Predictions of a registered version on the present test rows, from raw media, in a process of its own.

    The process imports the code that was logged with the version, so its own processor makes its features.

    Raises:
        RuntimeError: the process failed; the message carries the last line of its output.
    """
    from training.evaluate import judged_answers

    output = project.make_output()
    with tempfile.TemporaryDirectory() as temporary:
        rows, answers = Path(temporary) / "rows.parquet", Path(temporary) / "answers.parquet"
        subsets = output.asked(project.inputs)
        asked = write_raw(pipeline.open_lake(project), rows, "test", project.make_sources(), subsets, project.limits)
        run_version(project, version, rows, answers)
        look = look_into(pipeline.open_lake(project), project) if output.answers_with else None
        judged = judged_answers(asked, pq.read_table(answers), output, look)
    return judged.filter(pc.equal(judged["subset"], subset_name(project.inputs)))


def look_into(lake: Lake, project: Project) -> Look:
    """What contents of the present features look like."""
    from training.likeness import likenesses

    def look(modality: str, ids: Sequence[str]) -> Any:
        source = CodecSource.of(project.features, modality)
        step = make_processor(project).fingerprint(modality, source.tensor)
        name, dtype = source.tensor, project.features.featurizer(modality).tensors[source.tensor]
        query = (
            f"SELECT DISTINCT ON (id) id, {name}, {name}_shape FROM {modality}_features "
            "WHERE fingerprint = $step AND id IN (SELECT unnest($ids))"
        )
        rows = lake.sql(query, {"step": step, "ids": list(ids)}).to_pylist()
        found = {row["id"]: tensor(row, name, dtype) for row in rows}
        return likenesses([found[content] for content in ids], source), source

    return look


def run_version(project: Project, version: str, rows: Path, answers: Path) -> None:
    """Answers raw rows (a Parquet file with text, image, speech) with a registered version's own code."""
    from training.model_registry import fetch_model
    from training.score import score_command

    folder = fetch_model(project.mlflow_uri, project.name, version, rows.parent / f"model_{version}")
    command, environment = score_command(folder, rows, answers)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no word of why"])[-1]
        raise RuntimeError(f"version {version} of {project.name} could not answer: {last}")


def write_raw(
    lake: Lake,
    path: Path,
    split: str,
    sources: dict[str, Source],
    asked: Sequence[Sequence[str]] = (MODALITIES,),
    limits: MediaLimits | None = None,
    samples: Sequence[str] | None = None,
) -> pa.Table:
    """The raw inputs of a split as Parquet: sample_id, label, text, image, speech, attributes; a portion of samples at
    a time, each of which stands there once for each of the subsets that are asked, with these inputs only, if it has
    one of them.

    Args:
        samples: only these of the split.

    Returns:
        sample_id, subset and label of each row.
    """
    written = []
    with pq.ParquetWriter(path, RAW, compression="NONE") as writer:
        for rows in _raw_rows(
            lake, split, sources, limits or MediaLimits(), samples
        ):  # read once, whatever is asked of them
            for subset in asked:
                hidden = {f"{m}{part}": None for m in set(MODALITIES).difference(subset) for part in _PARTS}
                shown = [row | hidden for row in rows if any(row[f"{m}_id"] for m in subset)]
                part = pa.Table.from_pylist(shown, RAW)
                writer.write_table(part)
                named = pa.repeat(pa.scalar(subset_name(subset)), part.num_rows)
                written.append(part.select(["sample_id", "label"]).append_column("subset", named))
    columns = pa.schema([(name, pa.string()) for name in ("sample_id", "label", "subset")])
    return pa.concat_tables([columns.empty_table(), *(part.cast(columns) for part in written)])


def _raw_rows(
    lake: Lake, split: str, sources: dict[str, Source], limits: MediaLimits, chosen: Sequence[str] | None = None
) -> Iterator[list[dict[str, Any]]]:
    """The fields of RAW, and the ids of the first contents."""
    columns = ", ".join(f"{m}_{what}" for m in MODALITIES for what in ("id", "item", "more", "views"))
    given_any = f"coalesce({', '.join(f'{m}_id' for m in MODALITIES)}) IS NOT NULL"
    query = f"SELECT sample_id, label, attributes, {columns} FROM samples WHERE split = $split AND {given_any}"
    query += "" if chosen is None else f" AND {sql_among('sample_id', chosen)}"
    samples = lake.sql(f"{query} ORDER BY sample_id", {"split": split}).to_pylist()
    given = [{m: _items(row, m) for m in MODALITIES} for row in samples]
    pairs = [[pair for listed in one.values() for pair in listed] for one in given]
    parts = parts_of(lake, {content for listed in pairs for _, content in listed})
    present = sorted({item for listed in pairs for item, _ in listed})
    items = lake.sql("SELECT * FROM manifest WHERE item_id IN (SELECT unnest($ids))", {"ids": present})
    at = {item: n for n, item in enumerate(items["item_id"].to_pylist())}
    bytes_of = items["size"].to_pylist()
    sizes = [sum(parts[c].size if c in parts else bytes_of[at[i]] for i, c in listed) for listed in pairs]
    for numbers in portions(range(len(samples)), sizes, _ROWS):
        wanted = {pair for n in numbers for pair in pairs[n]}
        read = items.take(sorted({at[item] for item, _ in wanted}))
        data = read_contents(read, wanted, parts, sources, limits)
        yield [samples[n] | _raw_contents(given[n], data) for n in numbers]


def _items(row: Mapping[str, Any], modality: str) -> list[tuple[str, str]]:
    """Items and contents of a modality that a sample has, the first one first."""
    first = [(row[f"{modality}_item"], row[f"{modality}_id"])] if row[f"{modality}_id"] else []
    return [*first, *((one["item"], one["id"]) for one in row[f"{modality}_more"] or ())]


def _raw_contents(given: Mapping[str, Sequence[tuple[str, str]]], data: Mapping[str, bytes | None]) -> dict[str, Any]:
    """The columns X and X_more of a raw row."""
    values = {m: [raw_value(m, data.get(content)) for _, content in listed] for m, listed in given.items()}
    first = {m: contents[0] if contents else None for m, contents in values.items()}
    return first | {f"{m}_more": contents[1:] for m, contents in values.items()}


def raw_value(modality: str, data: bytes | None) -> str | bytes | None:
    """An item's bytes as a raw row (`training.schema.RAW`) has them."""
    is_text = catalog.MODALITIES.load(modality).is_text
    return data.decode() if is_text and data else data
