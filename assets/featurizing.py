"""Clean and feature rows of one modality in the lake: what lacks is made, what is refused is known."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from assets.catalog import ENGINES
from assets.compaction import MOST_FILES, compact
from assets.compressing import SAMPLE, Compressor, fits
from assets.contents import attach_data, portions, process_contents
from assets.engines.base import Engine
from assets.lake import Lake, sql_among, sql_string
from assets.processing import CLEAN_STEP, FEATURES_STEP, LIMITS, SIGNATURE_STEP, Outcome, Step
from assets.segments.base import NUMBERED
from assets.settings import Project
from assets.sources.base import Source
from assets.unchanged import code, project_words, recall, remember, versions
from training.processor import Processor
from training.schema import QUARANTINE, STEPS

# Results held before they are committed: writing takes several times that, and a crash loses no more.
_PORTION_BYTES = 16 * 2**20
_TEXTS_AT_ONCE = 16  # for one of the other items, as a batch: they are small


def make_processor(project: Project) -> Processor:
    return Processor(project.features, project.limits, fits(project))


# What the present steps and limits refuse of one modality, and (without a fingerprint) what could not be read in this
# run; once, where two runs at once have said so.
_REFUSED = """
SELECT DISTINCT * FROM quarantine WHERE modality = $modality
AND concat(sha256, cut) IN (SELECT concat(sha256, cut) FROM manifest WHERE modality = $modality) AND (
  stage = 'clean' AND (coalesce(fingerprint, $clean) = $clean OR list_contains($limits, fingerprint))
  OR stage = 'featurize' AND fingerprint = $features)
"""

# Of files with parts that are found by words: what these have in common -> the words of all, whichever are to be done.
WORDS_OF_PARTS = f"""
SELECT sha256, map_from_entries(list((together, words))) AS words FROM (
  SELECT sha256, regexp_extract(cut, '{NUMBERED}', 1) AS together,
    list(text ORDER BY regexp_extract(cut, '{NUMBERED}', 3)::INT) AS words
  FROM (SELECT DISTINCT sha256, cut, attributes->>'text' AS text FROM manifest WHERE modality = $modality
    AND regexp_matches(cut, '{NUMBERED}') AND sha256 IN (SELECT sha256 FROM asked))
  GROUP BY ALL
) GROUP BY ALL
"""

# Each part (most often the whole) of distinct bytes that was not refused before and lacks a step: its clean rows (then
# `need` is null), or for one of its contents (most often itself) features, a measurement, or a signature. Parts that
# have features, however they were found, need none.
_ASKED = """
WITH children AS NOT MATERIALIZED (
  SELECT parent_id, cut, id FROM clean_{modality} WHERE fingerprint = $clean
), wanted AS (SELECT unnest($filters) AS filter, unnest($measures) AS fingerprint
), lacking AS (
  SELECT parent_id, cut, unnest(CASE WHEN len(steps) = {feature_rows} THEN ['features'] ELSE steps END) AS step
  FROM (SELECT parent_id, cut, list(DISTINCT step) AS steps FROM ({unfeatured}) GROUP BY ALL)
  UNION ALL
  SELECT DISTINCT parent_id, cut, filter AS step
  FROM (SELECT parent_id, cut, id, filter, fingerprint FROM children, wanted)
  ANTI JOIN (SELECT id, filter, fingerprint FROM measurements WHERE modality = $modality)
    USING (id, filter, fingerprint)
  UNION ALL
  SELECT DISTINCT parent_id, cut, step FROM (SELECT parent_id, cut, id, unnest($signs) AS step FROM children)
  WHERE id NOT IN (SELECT id FROM signatures WHERE fingerprint = $signature)
), asked AS MATERIALIZED (
  SELECT min(item_id) AS item_id, sha256, cut, any_value(need) AS need
  FROM (
    SELECT item_id, sha256, m.cut, NULL AS need FROM manifest m
    ANTI JOIN children c ON c.parent_id = sha256 AND c.cut IS NOT DISTINCT FROM m.cut
    WHERE modality = $modality AND {within}
    UNION ALL
    SELECT item_id, sha256, m.cut, need FROM manifest m
    JOIN (SELECT parent_id, cut, list(step ORDER BY step) AS need FROM lacking GROUP BY ALL) n
      ON n.parent_id = sha256 AND n.cut IS NOT DISTINCT FROM m.cut
    WHERE modality = $modality AND {within}
  )
  WHERE concat(sha256, cut) NOT IN (
    SELECT concat(sha256, cut) FROM ({refused}) WHERE fingerprint IS NOT NULL
  )
  GROUP BY sha256, cut
)
"""
_UNFEATURED = """
SELECT parent_id, cut, '{step}' AS step FROM children
ANTI JOIN (SELECT id FROM {modality}_features WHERE fingerprint = '{key}') USING (id)
"""
_COUNTS = "SELECT count(DISTINCT sha256) AS files, count(*) AS n FROM asked"
# One row per distinct bytes, with each of their parts. Lists of many rows, which DuckDB cannot spill, are made of bytes
# that are cut only.
_PART = """
{'item_id': item_id, 'source': source, 'uri': uri, 'member': member, 'cut': cut, 'row': "row",
  'need': coalesce(need, ['clean', 'features'] || $filters || $signs)}
"""
_TO_DO = """
SELECT todo.*, words, featured_parts
FROM (
  SELECT manifest.*, [{part}] AS parts FROM manifest JOIN (SELECT item_id, need FROM asked) USING (item_id)
  WHERE sha256 NOT IN (SELECT sha256 FROM asked WHERE cut IS NOT NULL)
  UNION ALL
  SELECT manifest.*, parts FROM manifest JOIN (
    SELECT min(item_id) AS item_id, list({part} ORDER BY item_id) AS parts
    FROM manifest JOIN (SELECT item_id, need FROM asked) USING (item_id)
    WHERE sha256 IN (SELECT sha256 FROM asked WHERE cut IS NOT NULL) GROUP BY sha256
  ) USING (item_id)
) todo
LEFT JOIN ({words}) USING (sha256)
LEFT JOIN (
  SELECT parent_id, list(DISTINCT concat(id, fingerprint)) AS featured_parts FROM children
  JOIN (SELECT id, fingerprint FROM {modality}_features WHERE {stored}) USING (id)
  WHERE id <> parent_id AND parent_id IN (SELECT sha256 FROM asked) GROUP BY 1
) ON parent_id = sha256
ORDER BY uri, "offset", member, "row"
"""


# What is to be done, those first that a compression is fitted to: the contents of the least hashes.
_SAMPLE_FIRST = f"""
SELECT * EXCLUDE (place) FROM (SELECT *, row_number() OVER (ORDER BY sha256) AS place FROM ({{todo}}))
ORDER BY least(place, {SAMPLE + 1}), uri, "offset", member, "row"
"""


def make_step(project: Project, modality: str) -> Step:
    return Step(
        modality,
        make_processor(project),
        project.filters_of(modality),
        project.segments_of(modality),
        project.signature_of(modality),
    )


def table_of(modality: str, step: str) -> str:
    """What a step fills, as people name it; of measurements those of one filter, of features those columns that are
    made alone."""
    tables = {CLEAN_STEP: f"clean_{modality}", SIGNATURE_STEP: f"signatures.{modality}"}
    kind, _, columns = step.partition(" ")
    if kind == FEATURES_STEP:
        return f"{modality}_features" + (f".{columns}" if columns else "")
    return tables.get(step, f"measurements.{modality}.{step}")


def process_modality(
    lake: Lake,
    project: Project,
    modality: str,
    within: str | None = None,
    readers: Mapping[str, Source] | None = None,
) -> dict[str, Any]:
    """Cleans, measures and featurizes what is new of one modality; the bytes of each are decoded once for all.

    Args:
        within: SQL condition of the manifest's rows that it is to be done for (`PartitionSettings.within`); null: all.
        readers: what reads the manifest's rows, by their source; null: the sources of the project.

    Returns:
        Contents seen, processed, reused (there already) and quarantined (now or before); what is cut into as many parts
        as are found in it is one. And `computed`: `table_of` -> contents whose rows were made anew, or refused.
    """
    lake.require("manifest")
    read = None if within else _read(lake, project, modality)
    if (said := recall(project, f"clean_{modality}", read)) is not None:
        return dict(said)
    pa.set_memory_pool(pa.system_memory_pool())  # Arrow's own keeps what each thread freed: 50 MB more at the peak
    step = make_step(project, modality)
    record(lake, step)
    query, parameters = todo_query(step, within)
    counts = lake.sql(*_asked_query(step, _COUNTS, within))
    files, todo = counts["files"][0].as_py(), counts["n"][0].as_py()
    kind = step.processor.modalities[modality]
    if todo:
        step.processor.prepare(modality)
    featurizer = step.processor.featurizers[modality]
    in_python = kind.in_python and not featurizer.runs_model
    most = featurizer.most_workers() if todo else None
    engine = ENGINES.make(project.engine).suited(in_python, files, most, featurizer.runs_model)
    rows = engine.options.batch_size * (_TEXTS_AT_ONCE if kind.is_text else 1)
    compressed = step.processor.compressed[modality]
    if is_fitting := compressed is not None and not compressed.is_ready:
        query = _SAMPLE_FIRST.format(todo=query)
    streamed = lake.stream(query, parameters, rows)
    parts = (part for batch in streamed for part in portions(batch, batch["size"].to_pylist()))
    names = [source.name for source in project.sources if source.modality == modality]
    sources = readers or {name: source for name, source in project.make_sources().items() if name in names}
    batches = (part if _can_read(engine, part) else attach_data(part, sources) for part in parts)
    work = partial(process_contents, step=step, sources=sources)
    contents = "SELECT DISTINCT concat(sha256, cut) AS content FROM manifest WHERE modality = $modality"
    contents += f" AND {within}" if within else ""
    # What could not be read is tried again in every run, so its rows are this run's only.
    passing = f"stage = 'clean' AND fingerprint IS NULL AND modality = {sql_string(modality)}"
    if lake.sql(f"SELECT 1 FROM quarantine WHERE {passing} LIMIT 1").num_rows:
        others = f"SELECT * FROM quarantine WHERE {passing} AND concat(sha256, cut) NOT IN ({contents})"
        kept = QUARANTINE.empty_table() if within is None else lake.sql(others, {"modality": modality})
        lake.replace("quarantine", kept, predicate=passing)
    with tqdm(total=todo, desc=modality, unit="item", disable=None, leave=False) as progress:
        needed = _commit(lake, project, step, engine.map(work, batches), progress.update)
    if is_fitting:  # what its rows are named after is known by now
        step = make_step(project, modality)
        record(lake, step)
    count = f"SELECT count(*) AS n FROM ({contents})"
    seen = lake.sql(count, {"modality": modality})["n"][0].as_py()
    count += f" SEMI JOIN (SELECT concat(sha256, cut) AS content FROM ({_REFUSED})) USING (content)"
    refused = lake.sql(count, _refused_parameters(step))["n"][0].as_py()
    computed = {table_of(modality, name): n for name, n in sorted(needed.items())}
    if read and not lake.sql(f"SELECT 1 FROM quarantine WHERE {passing} LIMIT 1").num_rows:
        said = {"seen": seen, "processed": 0, "reused": seen, "quarantined": refused, "computed": {}}
        now = _read(lake, project, modality)
        if now and all(now[name] == read[name] for name in _NOT_OWN) and now["steps"] == step.fingerprints:
            remember(project, f"clean_{modality}", now, said)  # else another run has listed more meanwhile, say
    counts = {"seen": seen, "processed": todo, "reused": seen - todo, "quarantined": refused}
    return counts | {"computed": computed}


def record(lake: Lake, step: Step) -> None:
    """Writes down what the fingerprints stand for that the step's rows get, once."""
    known = set(lake.sql("SELECT fingerprint FROM steps")["fingerprint"].to_pylist())
    rows = [
        {"fingerprint": key, "modality": step.modality, "step": name, "parts": json.dumps(parts, sort_keys=True)}
        for key, (name, parts) in step.parts().items()
        if key not in known
    ]
    lake.append("steps", [pa.Table.from_pylist(rows, STEPS)])


_NOT_OWN = ("code", "settings", "steps", "limits", "manifest")  # of what `_read` gives what the step does not write


def _read(lake: Lake, project: Project, modality: str) -> dict[str, Any] | None:
    """What decides whether there is something to do; null where nobody knows."""
    if (words := project_words(project)) is None:
        return None
    step = make_step(project, modality)
    # Of the tables that modalities share, this one's rows.
    shared = [
        f"SELECT count(*), bit_xor(hash(t))::VARCHAR FROM {table} t WHERE modality = $modality AND {condition}"
        for table, condition in (
            ("measurements", "true"),
            ("signatures", "true"),
            ("quarantine", "stage IN ('clean', 'featurize')"),
        )
    ]
    with lake.connect("measurements signatures quarantine") as connection:
        rows = [connection.execute(query, {"modality": modality}).fetchall() for query in shared]
    return {
        "code": code(),
        "settings": words,
        "steps": step.fingerprints,
        "limits": step.processor.refused_fingerprint(modality),
        "manifest": versions(lake, ["manifest"]),
        "tables": versions(lake, [f"clean_{modality}", f"{modality}_features"]),
        "rows": rows,
    }


def _can_read(engine: Engine, rows: pa.RecordBatch) -> bool:
    """Whether the engine's workers reach what the manifest rows do not hold."""
    places = zip(rows["uri"].to_pylist(), rows["text"].to_pylist(), strict=True)
    return all(text is not None or engine.reads(uri) for uri, text in places)


def todo_query(step: Step, within: str | None = None) -> tuple[str, dict[str, Any]]:
    """The query for the items that lack something, a row for each file with its `parts`, and its parameters. Args:
    `within` as `process_modality` has it."""
    stored = sql_among("fingerprint", (step.fingerprints[name] for name in step.feature_rows))
    query = _TO_DO.format(modality=step.modality, words=WORDS_OF_PARTS, part=_PART, stored=stored)
    return _asked_query(step, query, within)


def _asked_query(step: Step, query: str, within: str | None) -> tuple[str, dict[str, Any]]:
    """A query over `asked` and `children` (`_ASKED`), and its parameters."""
    keys = step.fingerprints
    measures = {kind: key for kind, key in keys.items() if kind in step.filters}
    signs = [SIGNATURE_STEP] if SIGNATURE_STEP in keys else []
    lists: dict[str, Any] = {"filters": list(measures), "measures": list(measures.values())}
    lists |= {"signs": signs, "signature": keys.get(SIGNATURE_STEP, "")}
    rows = step.feature_rows
    unfeatured = (_UNFEATURED.format(step=name, modality=step.modality, key=keys[name]) for name in rows)
    asked = _ASKED.format(
        modality=step.modality,
        refused=_REFUSED,
        within=within or "true",
        feature_rows=len(rows),
        unfeatured=" UNION ALL ".join(unfeatured),
    )
    return asked + query, _refused_parameters(step) | lists


def _refused_parameters(step: Step) -> dict[str, Any]:
    keys = step.fingerprints
    limits = [key for key, (name, _) in step.parts().items() if name == LIMITS]
    refused = step.processor.refusing_fingerprint(step.modality)
    return {"modality": step.modality, "clean": keys[CLEAN_STEP], "features": refused, "limits": limits}


def _commit(
    lake: Lake, project: Project, step: Step, outcomes: Iterable[Outcome], done: Callable[[int], Any]
) -> Counter[str]:
    """Writes outcomes in portions of bounded size; gives how many contents each step was asked for."""
    # Features last: should the process die in between, the anti-join still finds what is left to do.
    modality = step.modality
    names = {"quarantine": "quarantine", "clean": f"clean_{modality}", "measurements": "measurements"}
    names["signatures"] = "signatures"
    names["features"] = f"{modality}_features"
    pending: dict[str, list[pa.Table]] = {part: [] for part in names}

    def write() -> None:
        for part, name in names.items():
            lake.append(name, pending[part])
            pending[part].clear()

    size, needed = 0, Counter[str]()
    compressor = Compressor(lake, project, modality, step.processor)
    for outcome in outcomes:
        for part, tables in pending.items():
            table: pa.Table = getattr(outcome, part)
            tables.append(compressor.add(table) if part == "features" else table)
            size += tables[-1].nbytes
        done(outcome.items)
        needed.update(outcome.needed)
        if size > _PORTION_BYTES:
            write()
            size = 0
    pending["features"].append(compressor.rest())
    write()
    for name in names.values():
        compact(lake, name, MOST_FILES)
    return needed


def content_key(rows: pa.Table, sha256: str = "sha256") -> pa.ChunkedArray:
    """What a content is refused by: the hash of the bytes, followed by the cut where there is one."""
    return pc.binary_join_element_wise(rows[sha256], pc.fill_null(rows["cut"], ""), "")


def content_keys(rows: pa.Table, sha256: str = "sha256") -> set[str]:
    return set(content_key(rows, sha256).to_pylist())


def refusals(lake: Lake, project: Project, modality: str) -> pa.Table:
    """What the present steps refuse of what the manifest lists of a modality, as rows of `quarantine`."""
    return _refusals(lake, make_step(project, modality))


def _refusals(lake: Lake, step: Step) -> pa.Table:
    return lake.sql(f"{_REFUSED} ORDER BY uri, member, stage", _refused_parameters(step))


def cut_rows(lake: Lake, project: Project, modality: str) -> str | None:
    """How many contents are longer than a model reads of them, in words; None where none is."""
    processor = make_processor(project)
    tensors = project.features.stored(modality)
    written = set(lake.schema(f"{modality}_features").names)
    if (rule := processor.featurizers[modality].cut()) is None or not written.issuperset(tensors):
        return None  # or nothing was ever featurized in this way
    condition, words = rule
    query = f"""
        SELECT count(*) AS n FROM (
          SELECT DISTINCT id FROM {modality}_features f JOIN clean_{modality} c USING (id)
          WHERE f.fingerprint = $features AND c.fingerprint = $clean AND ({condition}))
    """
    keys = {"features": processor.fingerprint(modality), "clean": processor.clean_fingerprint(modality)}
    count = lake.sql(query, keys)["n"][0].as_py()
    return f"{count:,} {words}" if count else None
