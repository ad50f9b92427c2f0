"""Items become samples: joined by key or by an explicit link table, each with label, groups and split.

Every item ends in exactly one way: used in a sample, unmatched (a quarantine row of stage align says why), or refused
before. `item_balance` counts that.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from assets.catalog import JOINS
from assets.findings import REFUSED, SHOWN, Finding, counted, differing_duplicates, listed, note, quoted, refusals
from assets.items import load_items, register_items, tell_unmatched
from assets.joins.columns import Columns
from assets.joins.parts import hold_splits, note_overlaps, tie_parts
from assets.joins.several import MORE, set_views
from assets.lake import open_duckdb, sql_name, sql_string
from assets.names import as_objects
from assets.pairing import pairing_findings, pool_sql
from assets.settings import AlignSettings
from assets.source_settings import SourceSettings
from assets.splits import assign_splits, pointer
from training.outputs.base import Output
from training.schema import MODALITIES, QUARANTINE, SAMPLES, conform

_BATCH_ROWS = 32_768  # of samples that are Arrow arrays at once


@dataclass(frozen=True)
class Alignment:
    samples: pa.Table  # training.schema.SAMPLES, sorted by sample_id
    quarantine: pa.Table  # training.schema.QUARANTINE, stage align: unmatched items, and links that give no sample
    findings: list[Finding]  # about items, keys and links
    report: list[tuple[str, str]] = field(default_factory=list)  # what the join tells, as (name, JSON)


def align(
    manifest: pa.Table,
    clean_ids: Mapping[str, pa.Table],
    settings: AlignSettings,
    sources: Sequence[SourceSettings],
    root: Path,
    refused: Mapping[str, set[str]] | None = None,
    quarantine: pa.Table | None = None,
    output: Output | None = None,
    near: pa.Table | None = None,
    before: pa.Table | None = None,
) -> Alignment:
    """Joins the manifest's clean items into samples.

    Args:
        manifest: `assets.items.ITEM_COLUMNS` of training.schema.MANIFEST.
        clean_ids: modality -> table with the contents that are usable now, `id`, the item's hash, `parent_id`, and its
            `cut` (an item may have several; without the columns it is its own); where there are such columns, `start`
            and `seconds`: the stretch of the item that the content is.
        root: folder that `settings.table` and the sources' tables start from.
        refused: modality -> contents that clean or featurize refused (hash of the item, followed by its cut); default:
            whatever is not in `clean_ids`.
        quarantine: rows of stage manifest, which tell a link to a refused item from a link to nothing, and what else
            says why contents are refused.
        output: what makes the labels, if no column holds them (`Output.own_label`).
        near: groups of near duplicates (assets.near_duplicates.GROUPS), which stay on one side of a split.
        before: `sample_id` and `split` of the samples there were: what is tied to one of them falls where that was.

    Raises:
        ValueError: the link table cannot be read or lacks a column, two samples have one id, no key of a modality
            matches, a column that the settings name is nowhere, or an item was neither cleaned nor refused.
    """
    with open_duckdb() as connection:
        connection.register("manifest", manifest)
        register_items(connection, clean_ids, refused, quarantine)
        findings, report = align_items(connection, settings, sources, root, output, near, before, refused is None)
        samples = connection.sql("FROM samples ORDER BY sample_id").to_arrow_table()
        left = connection.sql('FROM unmatched ORDER BY item_id, uri, "row"').to_arrow_table()
        return Alignment(samples.cast(SAMPLES), conform(left, QUARANTINE), findings, report)


def align_items(
    connection: duckdb.DuckDBPyConnection,
    settings: AlignSettings,
    sources: Sequence[SourceSettings],
    root: Path,
    output: Output | None = None,
    near: pa.Table | None = None,
    before: pa.Table | None = None,
    lenient: bool = False,
) -> tuple[list[Finding], list[tuple[str, str]]]:
    """`align` of what a connection has, in memory that DuckDB bounds; returns findings and report.

    It reads the relations `manifest`, `parts`, `refused` and `quarantine` (`assets.items.register_items`), and makes
    the tables `samples` (training.schema.SAMPLES) and `unmatched` (columns of training.schema.QUARANTINE).

    Args:
        near, before: as `align` has them.
        lenient: what is not in `parts` is refused.
    """
    sources = [source for source in sources if source.use == "samples"]
    load_items(connection, sources, lenient)
    first = refusals(connection, [source.name for source in sources])
    try:
        columns = Columns.of(connection, sources)
        set_views(connection, settings.views, columns)
        columns = JOINS.make(settings.on).join(connection, settings, sources, root, columns)
        _drop(connection, settings)
        tie_parts(connection, _KEPT, [m for m in MODALITIES if m not in settings.allow_shared], near)
        hold_splits(connection, _KEPT, before)
        note_overlaps(connection)
        _make_samples(connection, settings, columns, output)
        _note_rivals(connection, settings, columns)
        _note_differing(connection, settings, columns)
    except duckdb.InvalidInputException as error:  # `Columns.sql` says what is wrong
        raise ValueError(_cause_first(str(error).partition(": ")[2], first)) from None
    except ValueError as error:
        raise ValueError(_cause_first(str(error), first)) from None
    tell_unmatched(connection)
    noted = [Finding(*row) for row in connection.sql("FROM findings").fetchall()]
    noted += pairing_findings(connection, settings.pairing)
    return [*first, *differing_duplicates(connection), *noted], connection.sql("FROM report").fetchall()


def _cause_first(problem: str, findings: Sequence[Finding]) -> str:
    """Keys, columns and rows that seem to lack are often those of items that were refused."""
    return "; ".join([*(finding.message for finding in findings if finding.code == REFUSED), problem])


def _drop(connection: duckdb.DuckDBPyConnection, settings: AlignSettings) -> None:
    """View `judged`: `joined` with the column `dropped`, why a row becomes no sample, and of each modality `X_more` and
    `X_views`."""
    items = ", ".join(f"{m}_item" for m in MODALITIES)
    cases = " ".join(f"WHEN {m}_item IS NULL THEN 'requires_{m}'" for m in settings.require)
    there = connection.table("joined").columns
    more = {m: f"CASE WHEN len({m}_more) > 0 THEN {m}_more END" if f"{m}_more" in there else "NULL" for m in MODALITIES}
    further = ", ".join(f"{sql}::{MORE} AS {m}_more" for m, sql in more.items())
    views = {m: f"{m}_views" if f"{m}_views" in there and m in settings.views else "NULL" for m in MODALITIES}
    further += "".join(f", {sql}::VARCHAR[] AS {m}_views" for m, sql in views.items())
    made = {f"{m}_{what}" for m in MODALITIES for what in ("more", "views")}
    others = ", ".join(sql_name(column) for column in there if column not in made)
    connection.execute(
        f"""
        CREATE VIEW judged AS SELECT {others}, {further}, CASE
          WHEN coalesce({items}) IS NULL THEN 'no_input' {cases} END AS dropped
        FROM joined
        """
    )


_OF_MODALITY = "LEFT JOIN (FROM items WHERE modality = '{m}') {m} ON {m}.item_id = {m}_item AND {m}.id = {m}_id"
_ROWS = " ".join(_OF_MODALITY.format(m=m) for m in MODALITIES)
_JUDGED = f"judged {_ROWS}"
_KEPT = f"{_JUDGED} WHERE dropped IS NULL"  # what becomes a sample, with its items


def _note_rivals(connection: duckdb.DuckDBPyConnection, settings: AlignSettings, columns: Columns) -> None:
    """Notes the samples to which another table gives another label under the same name."""
    for name, rival in ((own, other) for own in settings.labels for other in columns.beside(own)):
        label, other = columns.sql(name), columns.sql(rival)
        rows = connection.sql(
            f"SELECT sample_id, {label}, {other} FROM {_KEPT} AND {label} <> {other} ORDER BY 1"
        ).fetchall()
        if rows:
            shown = "; ".join(f"{quoted(i)}: {quoted(a)} and {quoted(b)}" for i, a, b in rows[:SHOWN])
            said = f"{counted(len(rows), 'sample')} with another value in column {rival!r} than the label: {shown}"
            note(connection, Finding("conflicting_labels", said))


def _note_differing(connection: duckdb.DuckDBPyConnection, settings: AlignSettings, columns: Columns) -> None:
    """Notes the samples of which several items say something else than the first one, which counts."""
    named = dict.fromkeys((*settings.labels, *settings.group, *settings.held_out, settings.split.column))
    contents = [f"{m}_id" for m in MODALITIES]
    for modality, name in [(m, name) for m in settings.several for name in named if name and name not in contents]:
        further = f"(SELECT * REPLACE (part.item AS {modality}_item, part.id AS {modality}_id) "
        further += f"FROM (SELECT *, unnest({modality}_more) AS part FROM judged))"
        values = " UNION ALL ".join(
            f"SELECT sample_id, {columns.sql(name)} AS value FROM {rows} judged {_ROWS} WHERE dropped IS NULL"
            for rows in ("judged", further)
        )
        differing = connection.sql(
            f"SELECT sample_id, list(DISTINCT value ORDER BY value) FROM ({values}) "
            "GROUP BY 1 HAVING count(DISTINCT value) > 1 ORDER BY 1"
        ).fetchall()
        if differing:
            shown = "; ".join(f"{quoted(i)}: {listed(values)}" for i, values in differing[:SHOWN])
            said = f"{counted(len(differing), 'sample')} whose several items differ in column {name!r}"
            note(connection, Finding("differing_items", f"{said}, of which the first one's value counts: {shown}"))


def _make_samples(
    connection: duckdb.DuckDBPyConnection, settings: AlignSettings, columns: Columns, output: Output | None
) -> None:
    """Table `samples`, batch by batch."""
    connection.register("batch", SAMPLES.empty_table())
    connection.execute("CREATE TABLE samples AS FROM batch")
    # Another connection to the same tables: the one that gives the rows is not free meanwhile.
    with connection.cursor() as writer:
        for batch in _samples(connection, settings, columns, output):
            writer.register("batch", pa.Table.from_batches([batch]))
            writer.execute("INSERT INTO samples FROM batch")


def _samples(
    connection: duckdb.DuckDBPyConnection, settings: AlignSettings, columns: Columns, output: Output | None
) -> Iterator[pa.RecordBatch]:
    wanted = tuple(dict.fromkeys((*settings.group, *settings.held_out)))
    named = [*wanted, *(c for c in (settings.split.column,) if c is not None and c not in wanted)]
    attributes, lists = _attributes(columns, {columns.bare(name) for name in settings.labels})
    # What a row of `samples` is made of, as SQL: labels, columns that the split depends on, attributes.
    cells = {f"l{n}": columns.sql(name) for n, name in enumerate(settings.labels)}
    cells |= {f"c{n}": columns.sql(name) for n, name in enumerate(named)}
    slots = ", ".join(f"{m}_{part}" for part in ("id", "item", "more", "views", "status") for m in MODALITIES)
    pools = "".join(f", {pool_sql(settings.pairing, m, columns)} AS {m}_pool" for m in MODALITIES)
    times = ", ".join(f"{m}.time" for m in MODALITIES)
    also = "NULL::VARCHAR[]"
    if "split_keys" in connection.table("joined").columns:
        units = "(SELECT unnest(split_keys) AS also) LEFT JOIN tied ON tied.split_key = also"
        is_tied = connection.sql("SELECT 1 FROM tied LIMIT 1").fetchall() != []
        also = f"(SELECT list(coalesce(tied_unit, also)) FROM {units})" if is_tied else "split_keys"
    rows = connection.sql(
        f"""
        SELECT *, {", ".join([f"{sql} AS a{n}" for n, sql in enumerate(attributes.values())] or ["NULL"])} FROM (
          SELECT sample_id, coalesce(tied_unit, split_key) AS split_key, {also} AS split_keys, held,
            least({times}) AS time
            {"".join(f", {sql} AS {name}" for name, sql in (cells | lists).items())}, {slots}{pools}
          FROM {_JUDGED} LEFT JOIN tied USING (split_key) LEFT JOIN held_splits USING (tied_unit) WHERE dropped IS NULL
        ) ORDER BY sample_id
        """
    ).to_arrow_reader(_BATCH_ROWS)
    for batch in rows:
        given = {name: batch[f"c{n}"] for n, name in enumerate(named)}
        label = _labels(batch, settings, output)
        places = given | {"sample_id": batch["split_key"], "split_keys": batch["split_keys"], "held": batch["held"]}
        made = {
            "label": label,
            "split": assign_splits(places | {"label": label}, settings),
            "groups": as_objects({name: given[name] for name in wanted}, batch.num_rows),
            "attributes": as_objects({name: batch[f"a{n}"] for n, name in enumerate(attributes)}, batch.num_rows),
        }
        in_training = pc.equal(made["split"], "train")  # other rows neither draw nor lend
        made |= {f"{m}_pool": pc.if_else(in_training, batch[f"{m}_pool"], None) for m in MODALITIES}
        arrays = [made[f.name] if f.name in made else batch[f.name].cast(f.type) for f in SAMPLES]
        yield pa.record_batch(arrays, schema=SAMPLES)


def _attributes(columns: Columns, labels: set[str]) -> tuple[dict[str, str], dict[str, str]]:
    """The attributes of a sample, column -> SQL for its value; and the lists of values that this SQL reads, name -> SQL
    over the rows of the join: each JSON object is parsed once."""
    hidden = columns.hidden | labels
    if columns.link:
        parts = {"values": set(columns.link)}
    else:
        of = {m: [s for s, source in columns.settings.items() if source.modality == m] for m in MODALITIES}
        parts = {f"{m}.attributes": set[str]().union(*(columns.sources[s] for s in of[m])) for m in MODALITIES}
    values: dict[str, list[str]] = {}
    lists = {}
    for number, (part, names) in enumerate(parts.items()):
        if read := sorted(names - hidden):
            paths = ", ".join(sql_string(pointer(name)) for name in read)
            lists[f"part{number}"] = f"json_extract_string({part}, [{paths}])"
            for place, name in enumerate(read, 1):
                values.setdefault(name, []).append(f"part{number}[{place}]")
    # Where several have a name, the value of the first modality wins.
    return {name: f"coalesce({', '.join(sql)})" for name, sql in values.items()}, lists


def _labels(batch: pa.RecordBatch, settings: AlignSettings, output: Output | None) -> pa.Array:
    """The cells of the one column; of several, those that are not empty, as a JSON object. Without a column, what the
    output says."""
    if output is not None and not output.has_labels:
        contents = [_contents(batch[f"{m}_id"], batch[f"{m}_more"]) for m in MODALITIES]
        given = (dict(zip(MODALITIES, row, strict=True)) for row in zip(*contents, strict=True))
        labels = [output.own_label({m: content for m, content in row.items() if content}) for row in given]
        return pa.array(labels, pa.string())
    cells = {name: batch[f"l{n}"] for n, name in enumerate(settings.labels)}
    if isinstance(settings.label, str):
        return cells[settings.label]
    said = as_objects(cells, batch.num_rows)
    return pc.if_else(pc.equal(said, "{}"), pa.scalar(None, pa.string()), said)


def _contents(first: pa.Array, more: pa.Array) -> list[str | None]:
    """What samples have of a modality, each as one name."""
    further = more.to_pylist() if more.null_count < len(more) else [None] * len(more)
    return [
        one if one is None or not others else "+".join([one, *(item["id"] for item in others)])
        for one, others in zip(first.to_pylist(), further, strict=True)
    ]


def validate_samples(
    splits: Mapping[str, int],
    settings: AlignSettings,
    findings: Sequence[Finding] = (),
    output: Output | None = None,
) -> None:
    """Raises ValueError, saying what to change, where nothing can be trained or tested on the samples.

    Args:
        splits: split -> how many samples are in it.
        findings: of `align`; that most items of a source were refused is said first.
        output: as `align` had it.
    """
    if (problem := _problem(splits, settings, output)) is not None:
        raise ValueError(_cause_first(problem, findings))


def _problem(counts: Mapping[str, int], settings: AlignSettings, output: Output | None) -> str | None:
    rows = sum(counts.values())
    present = ", ".join(f"{count} {split}" for split, count in sorted(counts.items())) or "none"
    if rows == 0:
        return "no samples: nothing could be joined; `triptych sql` on quarantine (stage align) says why"
    if counts.get("unlabelled", 0) == rows and output is not None and not output.has_labels:
        return (
            f"no sample has {output.least_inputs} modalities or more, and the output learns from what samples have "
            "together: does align.on join what belongs together? `triptych sql` on samples shows what each one has"
        )
    if counts.get("unlabelled", 0) == rows:
        named = ", ".join(map(repr, settings.labels))
        where = f"column {named} is empty in every row" if named else "align.label is not set"
        return f"no sample has a label: {where}; name the column that holds the answers under align.label"
    if missing := [split for split in ("train", "test") if not counts.get(split)]:
        if settings.split.column is not None:
            advice = f"column {settings.split.column!r} has to say {missing[0]} in some rows"
        elif settings.group or settings.held_out:
            columns = ", ".join(dict.fromkeys((*settings.group, *settings.held_out)))
            advice = f"too few values of {columns} for the hash: list the test values (align.held_out and " + (
                "align.test_values), or change align.split (shares, seed)"
            )
        else:
            advice = "change align.split (shares, seed) or bring more samples"
        return f"no sample in {' and '.join(missing)} (there are {present}): {advice}"
    return None
