"""The data side without Dagster: manifest, clean and feature tables, samples, dataset.

Each function reads tables, calls a pure step and writes tables. Rows that are there already under the same key are
not made again, so a second run decodes nothing.
"""

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from assets.alignment import align_items, validate_samples
from assets.balance import Balance, item_balance
from assets.changes import SourceChange, changes_in
from assets.copies import copies, copy_findings, keep_one, usable
from assets.dataset import LISTS, check_attributes, check_columns, dataset_fingerprint, dataset_sql, fingerprint_of
from assets.featurizing import content_keys, make_processor, make_step, refusals
from assets.filtering import apply_filters
from assets.findings import Finding
from assets.items import register_items
from assets.known_files import Known, known_files, remember_files, sharing
from assets.labels import label_findings
from assets.lake import BATCH_ROWS, Lake, open_duckdb, sql_among, sql_string
from assets.near_duplicates import near_groups, write_pairs
from assets.pretraining import planned
from assets.processing import CLEAN_STEP
from assets.scan import Scan, make_tables, scan, scan_into
from assets.settings import Project
from assets.similarity import apply_similarity, pairs_of
from assets.snapshots import record
from assets.source_settings import SourceSettings
from assets.sources.base import SourceError
from assets.tables import table_entries
from assets.unchanged import code, project_words, recall, remember, state, versions
from training import catalog
from training.codecs.options import Source as CodecSource
from training.schema import MODALITIES, SAMPLES, fingerprint
from training.settings import MediaLimits, TextCleaning
from training.spec import CodecSpec, PretrainingSpec, RunSpec, TuningSpec, plan_codec, plan_runs, plan_tuning
from training.validation import to_dict


def open_lake(project: Project) -> Lake:
    return Lake(project.lake_uri, project.storage_options, project.memory, spill=str(project.spill))


class Listing(NamedTuple):
    """What the manifest step found."""

    seen: int
    listed: int
    refused: int  # quarantined and duplicates
    reused: int  # files that were not read again
    sources: dict[str, SourceChange]
    is_first: bool  # there was no manifest to compare with

    @property
    def words(self) -> str:
        """161 items, 2 refused; 5 new, 1 changed."""
        counts = {what: sum(getattr(s, what) for s in self.sources.values()) for what in ("new", "changed", "vanished")}
        differing = ", ".join(f"{n:,} {what}" for what, n in counts.items() if n) or "as before"
        return f"{self.listed:,} items, {self.refused:,} refused" + ("" if self.is_first else f"; {differing}")


def write_manifest(lake: Lake, project: Project) -> Listing:
    """Lists what may not be as it was, and puts manifest and its part of quarantine in place."""
    known, scanned = dict[str, Known](), dict[str, tuple[int, int]]()
    changes: dict[str, SourceChange] = {}
    is_first = lake.version("manifest") is None
    with lake.workspace("manifest", "quarantine") as connection:
        make_tables(connection)
        for source in project.sources:
            known[source.name], found = _scan_changed(connection, lake, project, source)
            scanned |= {} if found is None else {source.name: found}
        kept = _kept(known)
        items, refused = (_counts(connection, table, kept) for table in ("manifest", "quarantine"))
        if is_first or scanned or _other_sources(connection, known):
            connection.execute(
                f"""
                CREATE TEMP VIEW now AS FROM rows_now;
                CREATE TEMP VIEW before AS FROM manifest WHERE NOT ({kept});
                CREATE TEMP VIEW refused AS SELECT item_id FROM refused_now WHERE item_id IS NOT NULL
                """
            )
            changes = changes_in(connection, scanned)
            # Quarantine first: a crash between the two commits is mended by the next run, which writes both again.
            query = f"SELECT * FROM quarantine WHERE stage = 'manifest' AND ({kept}) UNION ALL FROM refused_now"
            lake.put("quarantine", connection, query, "stage = 'manifest'")
            rows = "SELECT * EXCLUDE n FROM rows_now"
            lake.put("manifest", connection, f"SELECT * FROM manifest WHERE {kept} UNION ALL {rows} ORDER BY item_id")
        kept_items, kept_refused = items.total(), refused.total()
        items, refused = items + _counts(connection, "rows_now"), refused + _counts(connection, "refused_now")
    for source in project.sources:
        if source.name in scanned:
            remember_files(lake, project, source, known[source.name])
    nothing = SourceChange(0, 0, 0, 0, [], [])
    changes = {name: changes.get(name, nothing) for name in dict.fromkeys([*known, *changes])}
    return Listing(
        seen=sum(seen for seen, _ in scanned.values()) + kept_items + kept_refused,
        listed=items.total(),
        refused=refused.total(),
        reused=sum(reused for _, reused in scanned.values()) + kept_items,
        sources={name: replace(change, items=items[name]) for name, change in changes.items()},
        is_first=is_first,
    )


_NOW = ("rows_now", "refused_now")


def _scan_changed(
    connection: duckdb.DuckDBPyConnection, lake: Lake, project: Project, source: SourceSettings
) -> tuple[Known, tuple[int, int] | None]:
    """Lists (`scan_into`) the files of a source that are not as they were, none where all are. Returns which these are,
    and what was seen and reused."""
    known, of_source = known_files(lake, project, source), f"source = {sql_string(source.name)}"
    if known.changed is None:
        return known, scan_into(connection, *_asked(lake, project, source))
    while known.changed:
        found = scan_into(connection, *_asked(lake, project, source, known.anew))
        contents = " UNION ALL ".join(f"SELECT key, sha256, cut FROM {name} WHERE {of_source}" for name in _NOW)
        if not (more := sharing(lake, source.name, known.changed, connection.sql(contents).to_arrow_table())):
            return known, found
        known = known._replace(changed=known.changed | more)
        connection.execute("; ".join(f"DELETE FROM {name} WHERE {of_source}" for name in _NOW))
    return known, None


def _kept(known: Mapping[str, Known]) -> str:
    """The SQL condition of the rows of manifest and quarantine that hold as they are."""
    of = {name: source.changed for name, source in known.items() if source.changed is not None}
    kept = [f"source = {sql_string(name)} AND NOT {sql_among('uri', sorted(uris))}" for name, uris in of.items()]
    return " OR ".join(kept) or "false"


def _counts(connection: duckdb.DuckDBPyConnection, table: str, condition: str = "true") -> Counter[str]:
    """Source -> how many of the rows that its listing gives are such."""
    listed = f"{table} WHERE stage = 'manifest'" if table == "quarantine" else table
    rows = connection.sql(f"SELECT source, count(*) FROM (FROM {listed}) WHERE {condition} GROUP BY 1").fetchall()
    return Counter(dict(rows))


def _other_sources(connection: duckdb.DuckDBPyConnection, known: Iterable[str]) -> bool:
    """Whether the tables have rows of sources that are none any more."""
    other = f"NOT {sql_among('source', known)}"
    rows = (
        f"SELECT 1 FROM manifest WHERE {other} UNION ALL SELECT 1 FROM quarantine WHERE stage = 'manifest' AND {other}"
    )
    return connection.sql(f"{rows} LIMIT 1").fetchall() != []


def scan_sources(lake: Lake, project: Project) -> list[Scan]:
    """Every source as it is now; what has not changed since the last manifest is not read."""
    return [scan(*_asked(lake, project, source)) for source in project.sources]


# What the last scan of a source read. A place that was not there, or not what its hash says, when it was read later, is
# hashed anew, whatever its times say: for all parts of it and all sources that have it, whichever was asked for.
_KNOWN = """
SELECT uri, member, "offset", size, mtime, etag, sha256 FROM manifest
WHERE source = $source AND {files} AND (uri, coalesce(member, ''), coalesce("offset", -1)) NOT IN (
  SELECT (m.uri, coalesce(m.member, ''), coalesce(m."offset", -1)) FROM manifest m JOIN quarantine q USING (item_id)
  WHERE q.stage = 'clean' AND q.fingerprint IS NULL)
"""


def _asked(
    lake: Lake, project: Project, source: SourceSettings, only: Collection[str] | None = None
) -> tuple[SourceSettings, Path, pa.Table | None, MediaLimits, TextCleaning | None, Collection[str] | None]:
    """What `scan` is asked."""
    is_text = catalog.MODALITIES.load(source.modality).is_text  # which is read in any case
    query = _KNOWN.format(files="true" if only is None else sql_among("uri", sorted(only)))
    known = None if is_text else lake.sql(query, {"source": source.name})
    return source, project.root, known, project.limits, project.cleaning, only


def quarantined(lake: Lake, project: Project) -> pa.Table:
    """The rows of `quarantine` that hold at present; those of other settings or of contents that are gone do not."""
    rows = [lake.sql("SELECT * FROM quarantine WHERE stage IN ('manifest', 'filter', 'align')")]
    return pa.concat_tables([*rows, *(refusals(lake, project, modality) for modality in project.modalities)])


class Samples(NamedTuple):
    """What the samples step made."""

    fingerprint: str  # of their content
    findings: list[Finding]  # what a person should know of items, keys and labels


def write_samples(lake: Lake, project: Project) -> Samples:
    """Filters the clean items and aligns them into samples; what would be as it is, is not made again."""
    lake.require("manifest")
    settings, before = _samples_settings(project), versions(lake, _SAMPLES_READ)
    said = recall(project, "samples", settings and [settings, before, versions(lake, _SAMPLES_MADE)])
    if said is not None:
        return Samples(said["fingerprint"], [Finding(*finding) for finding in said["findings"]])
    refusing = {m: refusals(lake, project, m) for m in project.modalities}
    refused = {m: content_keys(rows) for m, rows in refusing.items()}
    kept, filtered = {}, []
    told: list[Finding] = []
    steps = {m: make_step(project, m) for m in project.modalities}
    passed = {m: apply_filters(lake, step, project.of_samples) for m, step in steps.items()}
    compared = {m: usable(rows, refused[m]) for m, (rows, _) in passed.items()}
    near = write_pairs(lake, steps, {m: rows["id"] for m, rows in compared.items()})
    for modality, (contents, rows) in passed.items():
        pairs = near.filter(pc.equal(near["modality"], modality))
        found = copies(lake, modality, project.of_samples, compared[modality], pairs) if pairs.num_rows else None
        if found is not None and project.keeps_one(modality):
            contents, more = keep_one(contents, found, modality)
            rows = pa.concat_tables([rows, more])
        told += [] if found is None else copy_findings(found, modality, pairs)
        kept[modality] = contents
        refused[modality] |= content_keys(rows) - content_keys(kept[modality], "parent_id")  # others of them may pass
        filtered.append(rows)
        if project.noise:
            filtered.append(_noise(lake, project, modality)[1])
    output, unread = project.make_output(), 0
    near = tying(near, project)
    known = assigned(lake, project, near)
    with lake.workspace("manifest") as connection:
        listed = lake.sql("SELECT * FROM quarantine WHERE stage = 'manifest'")
        why = pa.concat_tables([listed, *refusing.values(), *filtered], promote_options="permissive")
        register_items(connection, kept, refused, why)
        try:
            findings, report = align_items(
                connection, project.align, project.sources, project.root, output, near, known
            )
            if project.pair_filters:
                joined = connection.table("samples").to_arrow_table().cast(SAMPLES)
                fitting = apply_similarity(lake, project, joined)
                connection.register("fitting", fitting.samples)
                connection.execute("CREATE OR REPLACE TABLE samples AS FROM fitting")
                filtered.append(fitting.refused)
                findings, unread = [*findings, *fitting.findings], fitting.unread
        finally:  # whose errors refer to these rows
            with lake.workspace() as aside:  # what failed may have left the other one in the middle of a result
                aside.register("filtered", pa.concat_tables(filtered))
                written = [lake.put("quarantine", aside, "FROM filtered", "stage = 'filter'")]
        query = 'FROM unmatched ORDER BY item_id, uri, "row"'
        written.append(lake.put("quarantine", connection, query, "stage = 'align'"))
        splits = dict(connection.sql("SELECT split, count(*) FROM samples GROUP BY 1").fetchall())
        # Its errors refer to the rows just written.
        validate_samples(splits, project.align, findings, output)
        check_columns(connection, "samples", project.model.columns)
        note = {"fingerprint": _fingerprint_of(connection), "splits": _split_rule(project)}
        for name in dict.fromkeys(name for name, _ in report):
            note[name] = f"[{', '.join(value for of, value in report if of == name)}]"
        # Where rows were erased the rest may be what is wanted now, under the name of what it was.
        lake.put("samples", connection, "FROM samples ORDER BY sample_id", note=note)
        labels = connection.sql("SELECT sample_id, label, split FROM samples ORDER BY sample_id").to_arrow_table()
    made = Samples(note["fingerprint"], [*findings, *told, *label_findings(labels, project)])
    after = versions(lake, _SAMPLES_READ)
    if not unread and _only_own(before, after, sum(written)) and _samples_settings(project) == settings:
        listed = [[finding.code, finding.message] for finding in made.findings]
        said = {"fingerprint": made.fingerprint, "findings": listed}
        remember(project, "samples", settings and [settings, after, versions(lake, _SAMPLES_MADE)], said)
    return made


def tying(near: pa.Table, project: Project) -> pa.Table:
    """Of the near duplicates (training.schema.NEAR_DUPLICATES) the groups that must not stand on two sides of a split
    (assets.near_duplicates.GROUPS)."""
    media = [m for m in project.modalities if not catalog.MODALITIES.load(m).is_text]
    bound = set(media or project.modalities) - set(project.align.allow_shared)
    return near_groups(near.filter(pc.is_in(near["modality"], pa.array(sorted(bound), pa.string()))))


def assigned(lake: Lake, project: Project, near: pa.Table) -> pa.Table | None:
    """The samples that there are and their splits, by which what is tied now goes (`assets.joins.parts.hold_splits`);
    null where nothing is tied, or they were split by another rule."""
    if not (near.num_rows or project.cuts) or lake.note("samples").get("splits") != _split_rule(project):
        return None
    return lake.sql("SELECT sample_id, split FROM samples")


def _split_rule(project: Project) -> str:
    """What is another where samples are to be split otherwise."""
    align = project.align
    return fingerprint(to_dict(align.split), align.group, align.held_out, align.test_values)


_SAMPLES_READ = ["manifest", "quarantine", "measurements", "signatures", *(f"clean_{m}" for m in MODALITIES)]
_SAMPLES_MADE = ["samples", "near_duplicates"]


def _samples_settings(project: Project) -> list[Any] | None:
    """What samples depend on beside tables of the lake."""
    align, links = project.align, None
    try:
        if align.table is not None and (links := state(table_entries(align.table, project.root, align))) is None:
            return None
    except SourceError:  # who reads it says so
        return None
    if (words := project_words(project)) is None:
        return None
    steps = {m: make_step(project, m).fingerprints for m in project.modalities}
    similar = [(pair.name, pair.keys(make_processor(project))) for pair in pairs_of(project)]
    return [code(), words, steps, links, similar]


def _only_own(before: Mapping[str, str | None], after: Mapping[str, str | None], written: int) -> bool:
    """Whether nobody but the step itself, so many times, has written one of the tables that it read."""
    name = "quarantine"
    others = all(before[table] == after[table] for table in before if table != name)
    first, then = (int((of[name] or "-1").rpartition(" ")[2]) for of in (before, after))
    return others and then - first == written


def _fingerprint_of(connection: duckdb.DuckDBPyConnection) -> str:
    """`samples_fingerprint` of the relation `samples`."""
    (has,) = connection.sql(f"SELECT {', '.join(f'count({name}) > 0' for name in LISTS)} FROM samples").fetchall()
    lists = [name for name, any_has in zip(LISTS, has, strict=True) if any_has]
    return fingerprint_of(connection.sql("FROM samples ORDER BY sample_id").to_arrow_reader(BATCH_ROWS), lists)


def balance(lake: Lake, project: Project) -> Balance:
    """What became of every item in this run."""
    usable = noise(lake, project)["item_id"].to_pylist()
    manifest = lake.sql("SELECT item_id, modality, sha256, cut FROM manifest")
    samples = lake.sql(f"SELECT {', '.join(f'{m}_item, {m}_more' for m in MODALITIES)} FROM samples")
    return item_balance(manifest, quarantined(lake, project), samples, noise=usable)


_CLIPS = """
SELECT item_id, modality, id FROM listed l JOIN usable u ON sha256 = parent_id AND l.cut IS NOT DISTINCT FROM u.cut
WHERE concat(sha256, l.cut) NOT IN (SELECT concat(sha256, cut) FROM refused)
"""


def noise(lake: Lake, project: Project) -> pa.Table:
    """`item_id`, `modality` and content `id` of the clips that augmentation can add."""
    clips = [pa.schema([(name, pa.string()) for name in ("item_id", "modality", "id")]).empty_table()]
    if not project.noise:
        return clips[0]
    manifest = lake.read("manifest")
    listed = manifest.filter(pc.is_in(manifest["source"], pa.array(project.noise, pa.string())))
    for modality in pc.unique(listed["modality"]).to_pylist():
        usable = {"usable": _noise(lake, project, modality)[0], "refused": refusals(lake, project, modality)}
        with open_duckdb() as connection:
            for name, rows in {"listed": listed, **usable}.items():
                connection.register(name, rows)
            clips.append(connection.sql(_CLIPS).to_arrow_table())
    return pa.concat_tables(clips).sort_by([("item_id", "ascending"), ("id", "ascending")])


def _noise(lake: Lake, project: Project, modality: str) -> tuple[pa.Table, pa.Table]:
    """As `apply_filters`, of the clips: limits hold for them, and filters do not, which say what samples may have."""
    return apply_filters(lake, replace(make_step(project, modality), filters={}), project.noise)


class Snapshot(NamedTuple):
    """A dataset's name and where it lies."""

    fingerprint: str
    version: int  # of the Delta table `dataset`
    features: dict[str, str]  # modality -> fingerprint of its feature rows


def write_dataset(lake: Lake, project: Project) -> Snapshot:
    """Writes the index of the present snapshot; one that is there already keeps its version."""
    processor = make_processor(project)
    features = {m: processor.fingerprint(m) for m in project.modalities}
    lake.require("samples")
    inputs = [code(), features, versions(lake, ["samples", "dataset"])]
    if (known := recall(project, "dataset", inputs)) is not None:
        record(lake, known, _steps(project), is_new=False)
        return present_snapshot(lake)
    with lake.workspace("samples") as connection:
        name = lake.note("samples").get("fingerprint") or _fingerprint_of(connection)
        fingerprint = dataset_fingerprint(name, features)
        note = {"fingerprint": fingerprint, "samples": name, "features": json.dumps(features)}
        is_new = lake.put("dataset", connection, dataset_sql(), note=note)
    record(lake, fingerprint, _steps(project), is_new=is_new)
    remember(project, "dataset", [code(), features, versions(lake, ["samples", "dataset"])], fingerprint)
    return present_snapshot(lake)


def _steps(project: Project) -> dict[str, list[str]]:
    """Table of contents -> what its rows of the present settings are keyed by, beside the content."""
    steps: dict[str, list[str]] = {"measurements": []}
    for modality in project.modalities:
        step = make_step(project, modality)
        keys = dict(step.fingerprints)
        steps[f"clean_{modality}"] = [keys.pop(CLEAN_STEP)]
        steps[f"{modality}_features"] = [keys.pop(name) for name in step.feature_rows]
        steps["measurements"] += keys.values()
    return steps


def present_snapshot(lake: Lake) -> Snapshot:
    """The dataset that the last run wrote."""
    version = lake.require("dataset")
    note = lake.note("dataset", version)
    return Snapshot(note["fingerprint"], version, json.loads(note["features"]))


def augmented_features(project: Project) -> dict[str, str]:
    """Modality -> fingerprint of the feature rows that only augmentation reads, of those that have such."""
    processor, found = make_processor(project), {}
    for modality in project.modalities:
        for tensor in project.features.augmented(modality):
            found[modality] = processor.fingerprint(modality, tensor)
    return found


def plan(project: Project) -> list[RunSpec]:
    """The trainings that the present dataset and settings ask for: the model, then its baselines.

    Raises:
        ValueError: the dataset was made with other features than the settings now ask for.
    """
    lake, processor = open_lake(project), make_processor(project)
    dataset, _, features = present_snapshot(lake)
    now = {m: processor.fingerprint(m) for m in project.modalities}
    if others := sorted(m for m in now | features if now.get(m) != features.get(m)):
        # The trainer would read the old features and give the model a processor that makes the new ones.
        raise ValueError(
            f"the dataset was made with other features of {', '.join(others)} than the settings now ask for: "
            "materialize the features and the dataset first (`--select +dataset`), or take the setting back"
        )
    named = project.named_columns
    if project.model.columns or named:
        with lake.connect("dataset") as connection:
            check_columns(connection, "dataset", project.model.columns)  # written before the prompt was
            check_attributes(connection, "dataset", named)  # before hours of training
    return runs_on(lake, project, dataset)


def codecs(lake: Lake, project: Project) -> list[CodecSpec]:
    """Of the contents that the models of the present dataset answer with."""
    output, processor = project.make_output(), make_processor(project)
    found = []
    for modality in output.answers_with:
        query = f"SELECT DISTINCT {modality}_id AS id FROM dataset WHERE split = 'train' AND {modality}_id IS NOT NULL"
        contents = lake.sql(f"{query} AND label IS NOT NULL")["id"].to_pylist()
        step = processor.fingerprint(modality, CodecSource.of(project.features, modality).tensor)
        found.append(plan_codec(output.codec_choices[modality], modality, project.features, contents, step))
    return found


def pretraining(lake: Lake, project: Project) -> PretrainingSpec | None:
    """What the encoders of the models of the present dataset start from; None where the project asks for nothing."""
    return None if project.pretraining is None else planned(lake, project, present_snapshot(lake).features)


def runs_on(lake: Lake, project: Project, dataset: str) -> list[RunSpec]:
    """The trainings that the settings ask for on the dataset of that fingerprint."""
    federation = project.federation
    federated = federation if federation is not None and (federation.listen or federation.coordinator) else None
    return plan_runs(
        project.model,
        project.training,
        project.features,
        project.modalities,
        dataset,
        _clips(lake, project),
        project.align.places,
        codecs(lake, project) if project.make_output().answers_with else (),
        pretraining(lake, project),
        federated,
        project.personalization,
    )


def _clips(lake: Lake, project: Project) -> dict[str, list[str]]:
    """Modality -> contents of the clips that augmentation can add to it."""
    clips: dict[str, set[str]] = {}
    for row in noise(lake, project).to_pylist():
        clips.setdefault(row["modality"], set()).add(row["id"])
    return {modality: sorted(ids) for modality, ids in clips.items()}


def tuning(project: Project) -> tuple[RunSpec, TuningSpec]:
    """The search that the settings ask for on the present dataset, and the model that it starts from.

    Raises:
        ValueError: see `plan`.
    """
    model, lake = plan(project)[0], open_lake(project)
    assert project.tuning is not None
    storage = str(project.folder / "tuning.db")
    return model, plan_tuning(project.tuning, project.tuned_metric.name, storage, _clips(lake, project), model)
