"""Erases an item, such as what a person asked to have forgotten, from every table and from what models stand on."""

import re
import shutil
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from assets import pipeline, snapshots
from assets.contents import attach_data
from assets.dataset import samples_fingerprint
from assets.feedback import taught_by
from assets.lake import Lake, sql_among, sql_name, sql_string
from assets.names import normalize
from assets.settings import Project
from assets.snapshots import Recorded
from assets.spill import remove_left
from orchestration.housekeeping import IDS, Snapshot, kept_records, kept_snapshots, kept_versions
from orchestration.proof import Proof, byte_needles, hash_needles, prove, text_needles
from training.schema import INDEX_TABLES, MODALITIES, TABLES

# Columns of ids that name no item and no content.
_OTHER_IDS = ("sample_id", "answer_id")
_ITEM_IDS = ("item_id", "item", *(f"{m}_item" for m in MODALITIES))


@dataclass(frozen=True)
class TrainedVersion:
    """A registered version of the model that was trained on an erased item."""

    version: int
    run_id: str


@dataclass(frozen=True)
class TrainedRun:
    """A run in MLflow, not of a registered version, that was trained on an erased item."""

    role: str  # model, or the name of the baseline
    run_id: str


@dataclass(frozen=True)
class Erased:
    """What `erase` removed, or would remove in a dry run, and what was made from it elsewhere."""

    project: str
    dry_run: bool
    items: list[str]  # item ids
    removed: dict[str, int]  # table -> rows
    models: list[TrainedVersion]
    runs: list[TrainedRun]
    history: int  # runs of Dagster's whose previews, pictures and messages may show it
    purged: list[int]  # versions of the model that were deleted
    proof: Proof | None  # that it is nowhere, or where it is; null of a dry run
    retrained: int | None = None  # the version that was then trained without it
    aliases: Sequence[str] = ()  # that the gate has given that version


def erase(project: Project, item: str, dry_run: bool, purge: bool, retrain: bool = False) -> Erased:
    """Removes an item from every table, and lists what was made from it elsewhere.

    The item's content goes wherever it occurs (copies of a file share their rows), and the samples it stands in. The
    file itself is not touched: take it from its source first, or the next run lists it again.

    Args:
        item: an item id, a key, a content hash, or a file's path or name within its archive; of what is there, or was
            when a kept snapshot was made.
        purge: also delete the MLflow runs, baselines too, and registered versions that were trained on it, and what
            Dagster has recorded of the project's runs.
        retrain: a model shall be trained without it afterwards (`train_again`), so it must be gone from its source.

    Raises:
        OSError: another process keeps a database, which still holds what was deleted in it.
        ValueError: nothing in the manifest or in quarantine is called that, or a model's snapshot is not there; or it
            is to be trained without it, and its source still has it.
    """
    from orchestration.history import forget, recorded_runs, scrub
    from orchestration.run import open_instance
    from training import mlflow_store
    from training.runs import runs_not_on

    lake = pipeline.open_lake(project)
    kept = kept_snapshots(project, lake)
    whole = kept_records(project, lake, kept)
    items, hashes = _called(project, lake, whole.values(), item)
    contents = _with_children(lake, hashes)
    if retrain:
        _check_gone(project, lake, items, hashes)
    predicates = {name: holds for name in TABLES if (holds := _holding(TABLES[name], items, contents))}
    answers = lake.sql(f"SELECT answer_id FROM answers WHERE {predicates['answers']}")["answer_id"].to_pylist()
    predicates["feedback"] = sql_among("answer_id", answers)  # what was said of them
    taught = [run_id for of in taught_by(project, answers).values() for run_id in of]
    holding = [s for s in kept if any(set(contents) & s.ids[m] for m in MODALITIES)]
    versions = {s.run_id: s.model for s in kept if s in holding or s.run_id in taught}
    free = _free(lake, kept, predicates["dataset"]) - {s.note.get("fingerprint", "") for s in holding}
    runs = runs_not_on(project.mlflow_uri, project.name, free) | dict.fromkeys(versions, "model")
    counts = {
        name: lake.sql(f"SELECT count(*) AS n FROM {name} WHERE {holds}")["n"][0].as_py()
        for name, holds in predicates.items()
    }
    needles, copies, unsearched = _needles(project, lake, whole.values(), predicates, contents)
    if not dry_run:
        if purge:
            artifacts = mlflow_store.local_path(project.artifacts or "")
            own = [project.home, *([project.root / artifacts] if artifacts and project.artifacts else [])]
            mlflow_store.purge(project.mlflow_uri, project.name, versions.values(), runs, own)
        for name in predicates:
            if name not in INDEX_TABLES and lake.open(name) is not None:
                if counts[name]:
                    for rows in _in_portions(lake, name, predicates[name], items, contents, answers):
                        lake.delete(name, rows)
                lake.vacuum(name)
                lake.forget(name)
        _erase_from_versions(project, lake, predicates)  # last: what is interrupted finds the item again
        _remove_local(project)
    history = 0
    if (project.home / "dagster.yaml").exists():
        with open_instance(project.home) as instance:
            history = len(recorded_runs(instance, project.name))
            if purge and not dry_run:
                forget(instance, project.name)
    if purge and not dry_run:
        scrub(project.home)
    proof = None if dry_run else _proof(project, lake, predicates, needles, copies, unsearched)
    return Erased(
        project=project.name,
        dry_run=dry_run,
        items=items,
        removed=counts,
        models=[TrainedVersion(version, run_id) for run_id, version in versions.items()],
        runs=[TrainedRun(role, run_id) for run_id, role in runs.items() if run_id not in versions],
        history=history,
        purged=list(versions.values()) if purge and not dry_run else [],
        proof=proof,
    )


def _check_gone(project: Project, lake: Lake, items: Sequence[str], hashes: Sequence[str]) -> None:
    """Raises ValueError where a source still has it, so that the next run would list and train on it."""
    for scan in pipeline.scan_sources(lake, project):
        for row in scan.rows.select(["item_id", "sha256", "uri", "member"]).to_pylist():
            if row["item_id"] in items or row["sha256"] in hashes:
                where = ": ".join(filter(None, (row["uri"], row["member"])))
                raise ValueError(
                    f"{where} is still at its source, so a model would be trained on it again: take it away there first"
                )


def train_again(project: Project, erased: Erased) -> Erased:
    """Runs the project's job, whose gate then decides about the new model."""
    from orchestration.run import open_instance, run_job, summary

    with open_instance(project.home) as instance:
        model = summary(project, run_job(project, instance)).model
    return replace(erased, retrained=model.version, aliases=model.aliases)


def _needles(
    project: Project, lake: Lake, kept: Iterable[Recorded], predicates: dict[str, str], contents: Sequence[str]
) -> tuple[dict[str, list[bytes]], dict[int, set[str]], list[str]]:
    """What to look for afterwards, by forms and as whole copies, and what cannot be looked for."""
    needles = {f"the hash {content}": hash_needles(content) for content in contents}
    unsearched, sources, read, copies = [], project.make_sources(), set[str](), dict[int, set[str]]()
    for then in (lake, *(snapshots.view(lake, one) for one in kept)):
        rows = then.sql(f"SELECT * FROM manifest WHERE {predicates['manifest']}")
        for row in rows.filter(pc.invert(pc.is_in(rows["item_id"], pa.array(sorted(read), pa.string())))).to_pylist():
            read.add(row["item_id"])
            copies.setdefault(row["size"], set()).add(row["sha256"])
            if row["text"] is not None:
                forms, what = text_needles(row["text"]), f"the text of item {row['item_id']}"
                needles |= {what: forms} if forms else {}
                unsearched += [] if forms else [f"{what} is too short to be told from others: {row['text']!r}"]
                continue
            content = attach_data(pa.Table.from_pylist([row], rows.schema), sources)
            data, what = content["data"][0].as_py(), f"the bytes of item {row['item_id']}"
            needles |= {what: byte_needles(data)} if data else {}
            why = content["data_error"][0].as_py()
            unsearched += [] if data else [f"parts of {what}, which are not known any more ({why}); whole copies were"]
    return needles, copies, unsearched


def _proof(
    project: Project,
    lake: Lake,
    predicates: dict[str, str],
    needles: dict[str, list[bytes]],
    copies: dict[int, set[str]],
    unsearched: list[str],
) -> Proof:
    """Looks into all files of this TRIPTYCH_HOME, and of lake and artifacts where they lie elsewhere on this machine;
    what lies on other machines is asked by table."""
    from training.mlflow_store import local_path

    folders = {project.home}
    for name, uri in (("lake", project.lake_uri), ("artifacts", project.artifacts_uri)):
        place = None if uri is None else local_path(uri)
        if place is not None:
            folders.add(place)
        elif name == "lake":
            held = {n: lake.sql(f"SELECT 1 FROM {n} WHERE {holds} LIMIT 1").num_rows for n, holds in predicates.items()}
            left = ", ".join(n for n, rows in held.items() if rows)
            unsearched = [*unsearched, f"the files of {uri}; of its tables {left or 'none'} holds it"]
        else:
            unsearched = [*unsearched, f"the files of {uri or 'the MLflow server'}"]
    outer = [f for f in folders if not any(f != other and f.is_relative_to(other) for other in folders)]
    return prove([Path(folder) for folder in outer], needles, unsearched, copies)


def _called(project: Project, lake: Lake, kept: Iterable[Recorded], item: str) -> tuple[list[str], list[str]]:
    """Item ids and content hashes of what a person calls `item`; raises ValueError where nothing is called that, and it
    is no hash."""
    named = "item_id = $i OR key = $key OR sha256 = $i OR uri = $i OR member = $i"
    listed = " UNION ".join(f"SELECT item_id, sha256 FROM {name} WHERE {named}" for name in ("manifest", "quarantine"))
    then = {(one.versions.get("manifest"), one.versions.get("quarantine")): snapshots.view(lake, one) for one in kept}
    found = [one.sql(listed, {"i": item, "key": normalize(item)}) for one in (lake, *then.values())]
    rows = pa.concat_tables(found).to_pylist()
    if rows:
        return sorted({row["item_id"] for row in rows} - {None}), sorted({row["sha256"] for row in rows} - {None})
    if re.fullmatch("[0-9a-f]{64}", item):  # of what is gone already, or was only ever asked about
        return [], [item]
    raise ValueError(f"{project.name} has no item {item!r}: give an item id, a key, a hash, or a path")


def _with_children(lake: Lake, hashes: list[str]) -> list[str]:
    """The contents and all parts that they were cut into."""
    parts = [f"SELECT id FROM clean_{m} WHERE {sql_among('parent_id', hashes)}" for m in MODALITIES]
    return sorted({*hashes, *lake.sql(" UNION ".join(parts))["id"].to_pylist()})


def _free(lake: Lake, kept: Sequence[Snapshot], holds: str) -> set[str]:
    """The fingerprints of the datasets that are known not to hold the item; of others nobody can tell any more."""
    free = {snapshot.note.get("fingerprint", "") for snapshot in kept}
    if not lake.sql(f"SELECT sample_id FROM dataset WHERE {holds} LIMIT 1").num_rows:
        free.add(lake.note("dataset").get("fingerprint", ""))  # may have no registered model yet
    return free


def _holding(schema: pa.Schema, items: Collection[str], contents: Collection[str]) -> str:
    """The SQL condition of the rows of a table that hold one of these items or contents; empty: it has no column that
    could."""
    conditions = []
    for field in schema:
        name, kind = sql_name(field.name), field.type
        if pa.types.is_list(kind) and pa.types.is_struct(kind.value_type):
            for part in kind.value_type:
                if (wanted := _values(part.name, items, contents)) is not None:
                    conditions.append(_holds(f"[one.{sql_name(part.name)} for one in {name}]", wanted))
        elif (wanted := _values(field.name, items, contents)) is not None:
            conditions.append(_holds(name, wanted) if pa.types.is_list(kind) else sql_among(name, wanted))
    return " OR ".join(conditions)


def _in_portions(
    lake: Lake, name: str, holds: str, items: Sequence[str], contents: Sequence[str], answers: Sequence[str]
) -> Iterator[str]:
    """Predicates of Delta's own SQL, each of a bounded size, for the rows that hold one of these items or contents; of
    feedback, those about one of these answers.

    Args:
        holds: that for DuckDB; Delta cannot look into lists, so their rows are named by their first column.
    """
    schema = TABLES[name]
    if name == "feedback":
        yield from (sql_among("answer_id", answers[start : start + IDS]) for start in range(0, len(answers), IDS))
        return
    if any(_is_listed(field) for field in schema):
        key = sql_name(schema.names[0])
        rows = lake.sql(f"SELECT DISTINCT {key} AS key FROM {name} WHERE {holds}")["key"].to_pylist()
        for start in range(0, len(rows), IDS):
            yield sql_among(key, rows[start : start + IDS])
        return
    for start in range(0, max(len(items), len(contents)), IDS):
        yield _holding(schema, items[start : start + IDS], contents[start : start + IDS])


def _is_listed(field: pa.Field) -> bool:
    """Whether a column may hold several items or contents."""
    if not pa.types.is_list(field.type):
        return False
    return pa.types.is_struct(field.type.value_type) or _values(field.name, (), ()) is not None


def _values(column: str, items: Collection[str], contents: Collection[str]) -> Collection[str] | None:
    """What a column of this name may hold of the items and contents; None where it names neither."""
    if column in _ITEM_IDS:
        return items
    is_content = column in ("id", "sha256", "first", "second", *(f"{m}_more" for m in MODALITIES)) or column.endswith(
        "_id"
    )
    return contents if is_content and column not in _OTHER_IDS else None


def _holds(listed: str, values: Iterable[str]) -> str:
    """The SQL condition that a list holds one of the values."""
    return f"coalesce(list_has_any({listed}, [{', '.join(map(sql_string, values))}]::VARCHAR[]), false)"


def _erase_from_versions(project: Project, lake: Lake, predicates: dict[str, str]) -> None:
    """Takes the rows out of the tables that are kept by versions, and out of the older versions of kept snapshots.

    A version of a table cannot be changed: the rest of an older one becomes a version of its own, and snapshots and
    models are told. Everything is written whole, since a predicate would name in the log what was erased.
    """
    from training import model_registry

    kept = kept_snapshots(project, lake)
    whole = kept_records(project, lake, kept)
    moved: dict[tuple[str, int], int] = {}
    for name in reversed(INDEX_TABLES):
        if lake.open(name) is None:
            continue
        newest, note = lake.require(name), lake.note(name)
        older = [version for version in kept_versions(name, kept, whole.values()) if version != newest]
        for version in older:
            if (rows := _without(lake, name, version, predicates[name])) is not None:
                lake.replace(name, rows, note=lake.note(name, version))
                moved[name, version] = lake.require(name)
        rows = _without(lake, name, newest, predicates[name])
        if rows is not None or lake.require(name) != newest:
            rows = lake.read_version(name, newest) if rows is None else rows
            assert rows is not None
            # So the next run sees that these are not the samples that it would make.
            if name == "samples":
                note = {"fingerprint": samples_fingerprint(rows), "splits": note.get("splits", "")}
            lake.replace(name, rows, note=note)
            moved[name, newest] = lake.require(name)
    told = [replace(one, versions={n: moved.get((n, v), v) for n, v in one.versions.items()}) for one in whole.values()]
    snapshots.keep(lake, told)
    for snapshot in kept:
        if (number := moved.get(("dataset", snapshot.version))) is not None:
            tags = {"dataset_version": str(number)}
            model_registry.tag_version(project.mlflow_uri, project.name, str(snapshot.model), tags)
    kept = kept_snapshots(project, lake)
    for name in (*reversed(INDEX_TABLES), "snapshots"):
        lake.vacuum(name, kept_versions(name, kept, told))


def _without(lake: Lake, name: str, version: int, holds: str) -> pa.Table | None:
    """The rows of a version of a table that a condition does not hold for; None: it holds for none."""
    then = replace(lake, versions={name: version})
    if not then.sql(f"SELECT 1 FROM {name} WHERE {holds} LIMIT 1").num_rows:
        return None
    return then.sql(f"SELECT * FROM {name} WHERE NOT coalesce({holds}, false)")


def _remove_local(project: Project) -> None:
    """The feature cache, unfinished trainings, their logs, what steps said and the report, which are made again; and
    what queries that were killed have left."""
    for name in ("cache", "checkpoints", "tensorboard", "unchanged"):
        shutil.rmtree(project.folder / name, ignore_errors=True)
    (project.folder / "report.html").unlink(missing_ok=True)
    remove_left(project.spill)
