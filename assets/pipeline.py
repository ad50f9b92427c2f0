"""The data side without Dagster: manifest, clean and feature tables, samples, dataset.

Each function reads tables, calls a pure step and writes tables. Rows that are there already under the same key are
not made again, so a second run decodes nothing.
"""

import json
from dataclasses import replace
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from assets.alignment import align, validate_samples
from assets.balance import Balance, item_balance
from assets.changes import SourceChange, manifest_before, source_changes
from assets.copies import copies, copy_findings, left_out
from assets.dataset import check_columns, dataset_fingerprint, make_dataset, samples_fingerprint
from assets.featurizing import content_keys, make_processor, make_step, refusals
from assets.filtering import apply_filters
from assets.findings import Finding
from assets.items import ITEM_COLUMNS
from assets.labels import label_findings
from assets.lake import Lake, in_order, open_duckdb, sql_name
from assets.near_duplicates import near_groups, write_pairs
from assets.scan import Scan, scan
from assets.settings import Project
from training import catalog
from training.schema import MODALITIES
from training.spec import RunSpec, plan_runs


def open_lake(project: Project) -> Lake:
    return Lake(project.lake_uri, project.storage_options)


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


# What the last scan of a source read. What was not there, or not what its hash says, when it was read later, is hashed
# anew, whatever its times say.
_KNOWN = """
SELECT uri, member, "offset", size, mtime, etag, sha256 FROM manifest
WHERE source = $source AND item_id NOT IN (
  SELECT item_id FROM quarantine WHERE stage = 'clean' AND fingerprint IS NULL AND item_id IS NOT NULL)
"""


def _is_there(lake: Lake, table: str, rows: pa.Table, key: str) -> bool:
    """Whether the table has these rows, in whatever order, and their columns; they are sorted by their key."""
    stored = lake.open(table)
    named = [] if stored is None else [field.name for field in stored.schema().fields]
    return sorted(named) == sorted(rows.column_names) and in_order(lake.read(table), key).equals(rows)


def write_manifest(lake: Lake, project: Project) -> Listing:
    """Lists every source and puts manifest and the manifest's part of quarantine in place."""
    scans, before = scan_sources(lake, project), manifest_before(lake)
    rows = pa.concat_tables(s.rows for s in scans).sort_by("item_id")
    # Quarantine first: a crash between the two commits is mended by the next run, which writes both again.
    quarantine = pa.concat_tables(s.quarantine for s in scans)
    lake.replace("quarantine", quarantine, predicate="stage = 'manifest'")
    if lake.version("manifest") is None or not _is_there(lake, "manifest", rows, "item_id"):
        lake.replace("manifest", rows)
    return Listing(
        seen=sum(s.seen for s in scans),
        listed=rows.num_rows,
        refused=quarantine.num_rows,
        reused=sum(s.reused for s in scans),
        sources=source_changes([s.source for s in scans], before, rows, quarantine),
        is_first=before is None,
    )


def scan_sources(lake: Lake, project: Project) -> list[Scan]:
    """Every source as it is now; what has not changed since the last manifest is not read."""
    scans = []
    for source in project.sources:
        is_text = catalog.MODALITIES.load(source.modality).is_text  # which is read in any case
        known = None if is_text else lake.sql(_KNOWN, {"source": source.name})
        scans.append(scan(source, project.root, known, project.limits))
    return scans


def quarantined(lake: Lake, project: Project) -> pa.Table:
    """The rows of `quarantine` that hold at present; those of other settings or of contents that are gone do not."""
    rows = [lake.sql("SELECT * FROM quarantine WHERE stage IN ('manifest', 'filter', 'align')")]
    return pa.concat_tables([*rows, *(refusals(lake, project, modality) for modality in project.modalities)])


class Samples(NamedTuple):
    """What the samples step made."""

    fingerprint: str  # of their content
    findings: list[Finding]  # what a person should know of items, keys and labels


def write_samples(lake: Lake, project: Project) -> Samples:
    """Filters the clean items and aligns them into samples."""
    lake.require("manifest")
    refusing = {m: refusals(lake, project, m) for m in project.modalities}
    refused = {m: content_keys(rows) for m, rows in refusing.items()}
    kept, filtered = {}, []
    told: list[Finding] = []
    steps = {m: make_step(project, m) for m in project.modalities}
    passed = {m: apply_filters(lake, step, project.of_samples) for m, step in steps.items()}
    near = write_pairs(lake, steps, {m: rows["id"] for m, (rows, _) in passed.items()})
    for modality, (contents, rows) in passed.items():
        pairs = near.filter(pc.equal(near["modality"], modality))
        found = copies(lake, modality, project.of_samples, contents, pairs) if pairs.num_rows else None
        if found is not None and project.keeps_one(modality):
            more = found.filter(pc.greater(found["rank"], 1))["id"]
            contents = contents.filter(pc.invert(pc.is_in(contents["id"], more.combine_chunks())))
            rows = pa.concat_tables([rows, left_out(found, modality)])
        told += [] if found is None else copy_findings(found, modality, pairs)
        kept[modality] = contents
        refused[modality] |= content_keys(rows) - content_keys(kept[modality], "parent_id")  # others of them may pass
        filtered.append(rows)
        if project.noise:
            filtered.append(_noise(lake, project, modality)[1])
    lake.replace("quarantine", pa.concat_tables(filtered), predicate="stage = 'filter'")
    manifest = lake.sql(f"SELECT {', '.join(map(sql_name, ITEM_COLUMNS))} FROM manifest")
    listed = lake.sql("SELECT * FROM quarantine WHERE stage = 'manifest'")
    why = pa.concat_tables([listed, *refusing.values(), *filtered], promote_options="permissive")
    output = project.make_output()
    near = tying(near, project)
    aligned = align(manifest, kept, project.align, project.sources, project.root, refused, why, output, near)
    lake.replace("quarantine", aligned.quarantine, predicate="stage = 'align'")
    # Its errors refer to the rows just written.
    validate_samples(aligned.samples, project.align, aligned.findings, output)
    check_columns(aligned.samples, project.model.columns)
    fingerprint = samples_fingerprint(aligned.samples)
    note = {"fingerprint": fingerprint}
    for name in dict.fromkeys(name for name, _ in aligned.report):
        note[name] = f"[{', '.join(value for of, value in aligned.report if of == name)}]"
    # Where rows were erased the rest may be what is wanted now, under the name of what it was.
    if lake.note("samples") != note or not _is_there(lake, "samples", aligned.samples, "sample_id"):
        lake.replace("samples", aligned.samples, note=note)
    return Samples(fingerprint, [*aligned.findings, *told, *label_findings(aligned.samples, project)])


def tying(near: pa.Table, project: Project) -> pa.Table:
    """Of the near duplicates (training.schema.NEAR_DUPLICATES) the groups that must not stand on two sides of a split
    (assets.near_duplicates.GROUPS)."""
    media = [m for m in project.modalities if not catalog.MODALITIES.load(m).is_text]
    bound = set(media or project.modalities) - set(project.align.allow_shared)
    return near_groups(near.filter(pc.is_in(near["modality"], pa.array(sorted(bound), pa.string()))))


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
    samples = lake.read("samples")
    name = lake.note("samples").get("fingerprint") or samples_fingerprint(samples)
    fingerprint = dataset_fingerprint(name, features)
    rows = make_dataset(samples)
    there = lake.note("dataset").get("fingerprint") == fingerprint
    if not there or not _is_there(lake, "dataset", rows, "sample_id"):  # rows may have been erased
        note = {"fingerprint": fingerprint, "samples": name, "features": json.dumps(features)}
        lake.replace("dataset", rows, note=note)
    return present_snapshot(lake)


def present_snapshot(lake: Lake) -> Snapshot:
    """The dataset that the last run wrote."""
    version = lake.require("dataset")
    note = lake.note("dataset", version)
    return Snapshot(note["fingerprint"], version, json.loads(note["features"]))


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
    if project.model.columns:
        check_columns(lake.read("dataset"), project.model.columns)  # written before the prompt was
    clips: dict[str, set[str]] = {}
    for row in noise(lake, project).to_pylist():
        clips.setdefault(row["modality"], set()).add(row["id"])
    listed = {modality: sorted(ids) for modality, ids in clips.items()}
    return plan_runs(
        project.model, project.training, project.features, project.modalities, dataset, listed, project.align.several
    )
