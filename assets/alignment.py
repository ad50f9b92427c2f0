"""Items become samples: joined by key or by an explicit link table, each with label, groups and split.

Every item ends in exactly one way: used in a sample, unmatched (a quarantine row of stage align says why), or refused
before. `item_balance` counts that.
"""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from assets.catalog import JOINS
from assets.findings import REFUSED, SHOWN, Finding, counted, differing_duplicates, listed, note, quoted, refusals
from assets.items import load_items, unmatched
from assets.joins.columns import Columns
from assets.joins.parts import note_overlaps, tie_parts
from assets.joins.several import MORE, set_views
from assets.lake import BATCH_ROWS, open_duckdb, sql_name
from assets.names import as_object
from assets.pairing import pairing_findings, pool_sql
from assets.settings import AlignSettings
from assets.source_settings import SourceSettings
from assets.splits import assign_splits
from training.outputs.base import Output
from training.schema import MODALITIES, SAMPLES


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

    Raises:
        ValueError: the link table cannot be read or lacks a column, two samples have one id, no key of a modality
            matches, a column that the settings name is nowhere, or an item was neither cleaned nor refused.
    """
    sources = [source for source in sources if source.use == "samples"]
    with open_duckdb() as connection:
        load_items(connection, manifest, clean_ids, sources, refused, quarantine)
        first = refusals(connection, [source.name for source in sources])
        try:
            columns = Columns.of(connection, sources)
            set_views(connection, settings.views, columns)
            columns = JOINS.make(settings.on).join(connection, settings, sources, root, columns)
            _drop(connection, settings)
            tie_parts(connection, _KEPT, [m for m in MODALITIES if m not in settings.allow_shared], near)
            note_overlaps(connection)
            samples = _samples(connection, settings, columns, output)
            _note_rivals(connection, settings, columns)
            _note_differing(connection, settings, columns)
        except duckdb.InvalidInputException as error:  # `Columns.sql` says what is wrong
            raise ValueError(_cause_first(str(error).partition(": ")[2], first)) from None
        except ValueError as error:
            raise ValueError(_cause_first(str(error), first)) from None
        noted = [Finding(*row) for row in connection.sql("FROM findings").fetchall()]
        noted += pairing_findings(samples, settings.pairing)
        findings = [*first, *(differing_duplicates(quarantine) if quarantine is not None else []), *noted]
        report = connection.sql("FROM report").fetchall()
        return Alignment(samples, unmatched(connection), findings, report)


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


_ROWS = " ".join(f"LEFT JOIN items {m} ON {m}.item_id = {m}_item AND {m}.id = {m}_id" for m in MODALITIES)
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


def _samples(
    connection: duckdb.DuckDBPyConnection, settings: AlignSettings, columns: Columns, output: Output | None
) -> pa.Table:
    wanted = dict.fromkeys((*settings.group, *settings.held_out))
    named = [*wanted, *(c for c in (settings.split.column,) if c is not None and c not in wanted)]
    values = "".join(f", {columns.sql(name)} AS c{n}" for n, name in enumerate(named))
    labels = {name: f"l{n}" for n, name in enumerate(settings.labels)}
    # Where several have a name, the value of the first modality wins.
    attributes = ["values"] if columns.link else [f"{m}.attributes" for m in reversed(MODALITIES)]
    parts = {f"a{n}": attribute for n, attribute in enumerate(attributes)}
    answers = "".join(f", {columns.sql(name)} AS {cell}" for name, cell in labels.items())
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
        SELECT sample_id, coalesce(tied_unit, split_key) AS split_key, {also} AS split_keys, least({times}) AS time
          {answers}{values}, {slots}{pools},
          {", ".join(f"{part} AS {name}" for name, part in parts.items())}
        FROM {_JUDGED} LEFT JOIN tied USING (split_key) WHERE dropped IS NULL ORDER BY sample_id
        """
    ).to_arrow_reader(BATCH_ROWS)
    cells = {name: f"c{n}" for n, name in enumerate(named)} | {"sample_id": "split_key", "split_keys": "split_keys"}
    hidden = columns.hidden | {columns.bare(name) for name in labels}
    merged = lru_cache(BATCH_ROWS)(partial(_merged, hidden))
    tables = [SAMPLES.empty_table()]
    for batch in rows:
        each = [dict(zip(cells, row, strict=True)) for row in _rows(batch, cells.values())]
        for n, row in enumerate(each):
            if output is None or output.has_labels:
                row["label"] = _label({name: batch[cell][n].as_py() for name, cell in labels.items()}, settings)
            else:
                ids = {m: _content(batch[f"{m}_id"][n].as_py(), batch[f"{m}_more"][n].as_py()) for m in MODALITIES}
                row["label"] = output.own_label({m: content for m, content in ids.items() if content is not None})
        derived = {
            "label": [row["label"] for row in each],
            "split": assign_splits(each, settings),
            "groups": [as_object({c: row[c] for c in wanted if row[c]}) for row in each],
            "attributes": [merged(*row) for row in _rows(batch, parts)],
        }
        made = {name: pa.array(values, pa.string()) for name, values in derived.items()}
        in_training = pc.equal(made["split"], "train")  # other rows neither draw nor lend
        made |= {f"{m}_pool": pc.if_else(in_training, batch[f"{m}_pool"], None) for m in MODALITIES}
        arrays = [made[f.name] if f.name in made else batch[f.name].cast(f.type) for f in SAMPLES]
        tables.append(pa.table(arrays, schema=SAMPLES))
    return pa.concat_tables(tables)


def _content(first: str | None, more: Sequence[Mapping[str, str]] | None) -> str | None:
    """What a sample has of a modality, as one name."""
    return "+".join([first, *(item["id"] for item in more)]) if first is not None and more else first


def _rows(batch: pa.RecordBatch, columns: Iterable[str]) -> Iterable[tuple[Any, ...]]:
    return zip(*(batch[column].to_pylist() for column in columns), strict=True)


def _label(given: Mapping[str, str | None], settings: AlignSettings) -> str | None:
    """The cell of the one column; of several, those that are not empty, as a JSON object."""
    if isinstance(settings.label, str):
        return given[settings.label]
    said = {name: value for name, value in given.items() if value is not None}
    return as_object(said) if said else None


_encode = json.JSONEncoder(ensure_ascii=False, sort_keys=True).encode


def _merged(hidden: Collection[str], *parts: str | None) -> str:
    """JSON objects as one, in which the last one counts, without the hidden names."""
    return _encode({k: v for part in parts if part is not None for k, v in json.loads(part).items() if k not in hidden})


def validate_samples(
    samples: pa.Table, settings: AlignSettings, findings: Sequence[Finding] = (), output: Output | None = None
) -> None:
    """Raises ValueError, saying what to change, where nothing can be trained or tested on these samples.

    Args:
        findings: of `align`; that most items of a source were refused is said first.
        output: as `align` had it.
    """
    if (problem := _problem(samples, settings, output)) is not None:
        raise ValueError(_cause_first(problem, findings))


def _problem(samples: pa.Table, settings: AlignSettings, output: Output | None) -> str | None:
    counts = {row["values"]: row["counts"] for row in pc.value_counts(samples["split"]).to_pylist()}
    present = ", ".join(f"{count} {split}" for split, count in sorted(counts.items())) or "none"
    if samples.num_rows == 0:
        return "no samples: nothing could be joined; `triptych sql` on quarantine (stage align) says why"
    if counts.get("unlabelled", 0) == samples.num_rows and output is not None and not output.has_labels:
        return (
            f"no sample has {output.least_inputs} modalities or more, and the output learns from what samples have "
            "together: does align.on join what belongs together? `triptych sql` on samples shows what each one has"
        )
    if counts.get("unlabelled", 0) == samples.num_rows:
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
