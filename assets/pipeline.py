"""The data side without Dagster: manifest, clean and feature tables, samples, dataset.

Each function reads tables, calls a pure step and writes tables. Rows that are there already under the same key are
not made again, so a second run decodes nothing.
"""

import json
from functools import partial
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from assets.alignment import Balance, align, item_balance, samples_fingerprint, validate_samples
from assets.catalog import ENGINES
from assets.contents import attach_data, portions
from assets.dataset import dataset_fingerprint, make_dataset
from assets.lake import Lake
from assets.processing import Outcome, Step
from assets.scan import scan
from assets.settings import Project
from assets.sources.base import Source
from training.processor import Processor
from training.schema import QUARANTINE
from training.spec import RunSpec, plan_runs

_PORTION_BYTES = 64 * 2**20  # results held before they are committed; a crash loses at most this much work


def open_lake(project: Project) -> Lake:
    return Lake(project.lake_uri)


def make_processor(project: Project) -> Processor:
    return Processor(project.features, project.limits)


class Listing(NamedTuple):
    """What the manifest step found."""

    seen: int
    listed: int
    refused: int  # quarantined and duplicates
    reused: int  # files that were not read again
    by_source: dict[str, int]


def write_manifest(lake: Lake, project: Project) -> Listing:
    """Lists every source and puts manifest and the manifest's part of quarantine in place."""
    before = lake.read("manifest")
    # What was not there, or not what its hash says, when it was read: hashed anew, whatever its times say.
    unread = lake.sql("SELECT DISTINCT item_id FROM quarantine WHERE stage = 'clean' AND fingerprint IS NULL")[
        "item_id"
    ]
    relied = before.filter(pc.invert(pc.is_in(before["item_id"], unread)))
    scans = []
    for source in project.sources:
        known = relied.filter(pc.equal(relied["source"], source.name))
        scans.append(scan(source, project.root, known, project.limits))
    rows = pa.concat_tables(s.rows for s in scans).sort_by("item_id")
    # Quarantine first: a crash between the two commits is mended by the next run, which writes both again.
    lake.replace("quarantine", pa.concat_tables(s.quarantine for s in scans), predicate="stage = 'manifest'")
    if lake.version("manifest") is None or not rows.equals(before.sort_by("item_id")):
        lake.replace("manifest", rows)
    return Listing(
        seen=sum(s.seen for s in scans),
        listed=rows.num_rows,
        refused=sum(s.quarantine.num_rows for s in scans),
        reused=sum(s.reused for s in scans),
        by_source={s.source: s.rows.num_rows for s in scans},
    )


# What the present steps refuse of one modality, and (without a fingerprint) what could not be read in this run.
_REFUSED = """
SELECT * FROM quarantine WHERE modality = $modality
AND sha256 IN (SELECT sha256 FROM manifest WHERE modality = $modality) AND (
  stage = 'clean' AND coalesce(fingerprint, $clean) = $clean OR stage = 'featurize' AND fingerprint = $features)
"""

# One row per distinct content that lacks its clean row or its features and was not refused before.
_TO_DO = """
WITH items AS (
  SELECT * FROM manifest WHERE modality = $modality
  QUALIFY row_number() OVER (PARTITION BY sha256 ORDER BY item_id) = 1
)
SELECT items.*, cleaned.id IS NULL AS need_clean, featured.id IS NULL AS need_features
FROM items
LEFT JOIN (SELECT DISTINCT id FROM clean_{modality} WHERE fingerprint = $clean) cleaned ON cleaned.id = sha256
LEFT JOIN (SELECT DISTINCT id FROM {modality}_features WHERE fingerprint = $features) featured ON featured.id = sha256
WHERE (cleaned.id IS NULL OR featured.id IS NULL) AND sha256 NOT IN (
  SELECT sha256 FROM ({refused}) WHERE fingerprint IS NOT NULL
)
ORDER BY uri, "offset", member, "row"
"""


def process_modality(lake: Lake, project: Project, modality: str) -> dict[str, int]:
    """Cleans and featurizes what is new of one modality; each content is decoded once for both.

    Returns:
        Contents seen, processed, reused (there already) and quarantined (now or before).
    """
    lake.require("manifest")
    processor = make_processor(project)
    keys = fingerprints(processor, modality)
    parameters = {**keys, "modality": modality}
    query = _TO_DO.format(modality=modality, refused=_REFUSED)
    todo = lake.sql(f"SELECT count(*) AS n FROM ({query})", parameters)["n"][0].as_py()
    engine = ENGINES.make(project.engine)
    streamed = lake.stream(query, parameters, engine.options.batch_size)
    batches = (part for batch in streamed for part in portions(batch, batch["size"].to_pylist()))
    work = partial(_read_and_process, step=Step(modality, processor), sources=project.make_sources())
    names = ("quarantine", f"clean_{modality}", f"{modality}_features")
    # What could not be read is tried again in every run, so its rows are this run's only.
    lake.replace(
        "quarantine",
        QUARANTINE.empty_table(),
        predicate=f"stage = 'clean' AND fingerprint IS NULL AND modality = '{modality}'",
    )
    pending: dict[str, list[pa.Table]] = {name: [] for name in names}

    def commit() -> None:
        # Features last: should the process die in between, the anti-join still finds what is left to do.
        for name in names:
            lake.append(name, pending[name])
            pending[name].clear()

    size = 0
    with tqdm(total=todo, desc=modality, unit="item", disable=None, leave=False) as progress:
        for result in engine.map(work, batches):
            for name, table in zip(names, (result.quarantine, result.clean, result.features), strict=True):
                pending[name].append(table)
                size += table.nbytes
            progress.update(result.items)
            if size > _PORTION_BYTES:
                commit()
                size = 0
    commit()
    refused = len(set(refusals(lake, project, modality)["sha256"].to_pylist()))
    distinct = "SELECT count(DISTINCT sha256) AS n FROM manifest WHERE modality = $modality"
    seen = lake.sql(distinct, {"modality": modality})["n"][0].as_py()
    return {"seen": seen, "processed": todo, "reused": seen - todo, "quarantined": refused}


def _read_and_process(batch: pa.RecordBatch, step: Step, sources: dict[str, Source]) -> Outcome:
    """The engine's unit of work: reading at the edge, then the pure step."""
    return step(attach_data(batch, sources))


def refusals(lake: Lake, project: Project, modality: str) -> pa.Table:
    """What the present steps refuse of what the manifest lists of a modality, as rows of `quarantine`."""
    parameters = {**fingerprints(make_processor(project), modality), "modality": modality}
    return lake.sql(f"{_REFUSED} ORDER BY uri, member, stage", parameters)


def quarantined(lake: Lake, project: Project) -> pa.Table:
    """The rows of `quarantine` that hold at present; those of other settings or of contents that are gone do not."""
    rows = [lake.sql("SELECT * FROM quarantine WHERE stage IN ('manifest', 'align')")]
    return pa.concat_tables([*rows, *(refusals(lake, project, modality) for modality in project.modalities)])


def write_samples(lake: Lake, project: Project) -> str:
    """Aligns the clean items into samples; returns the fingerprint of their content."""
    lake.require("manifest")
    processor = make_processor(project)
    usable, refused = {}, {}
    for modality in project.modalities:
        clean = f"SELECT DISTINCT id FROM clean_{modality} WHERE fingerprint = $clean"
        usable[modality] = lake.sql(clean, {"clean": processor.clean_fingerprint(modality)})
        refused[modality] = set(refusals(lake, project, modality)["sha256"].to_pylist())
    manifest, listed = lake.read("manifest"), lake.sql("SELECT * FROM quarantine WHERE stage = 'manifest'")
    aligned = align(manifest, usable, project.align, project.sources, project.root, refused, listed)
    lake.replace("quarantine", aligned.quarantine, predicate="stage = 'align'")
    validate_samples(aligned.samples, project.align)  # its errors refer to the rows just written
    fingerprint = samples_fingerprint(aligned.samples)
    # Where rows were erased the rest may be what is wanted now, under the name of what it was.
    named = lake.note("samples").get("fingerprint") == fingerprint
    if not named or not lake.read("samples").sort_by("sample_id").equals(aligned.samples):
        lake.replace("samples", aligned.samples, note={"fingerprint": fingerprint})
    return fingerprint


def balance(lake: Lake, project: Project) -> Balance:
    """What became of every item in this run."""
    usable = noise(lake, project)["item_id"].to_pylist()
    return item_balance(lake.read("manifest"), quarantined(lake, project), lake.read("samples"), noise=usable)


def noise(lake: Lake, project: Project) -> pa.Table:
    """`item_id` and content `id` of the clips that augmentation can add to speech."""
    query = """
        SELECT item_id, sha256 AS id FROM manifest
        WHERE source IN (SELECT unnest($sources)) AND sha256 IN (FROM clean_speech SELECT id WHERE fingerprint = $clean)
        ORDER BY item_id
    """
    clean = make_processor(project).clean_fingerprint("speech")
    return lake.sql(query, {"sources": list(project.noise), "clean": clean})


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
    if not there or not lake.read("dataset").sort_by("sample_id").equals(rows):  # rows may have been erased
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
    clips = set(noise(lake, project)["id"].to_pylist()) if project.noise else ()
    return plan_runs(project.model, project.training, project.features, project.modalities, dataset, sorted(clips))


def fingerprints(processor: Processor, modality: str) -> dict[str, str]:
    return {"clean": processor.clean_fingerprint(modality), "features": processor.fingerprint(modality)}
