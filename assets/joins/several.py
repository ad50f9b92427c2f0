"""Several items of one modality in a sample (`align.several`), in a defined order, or each of a view of its own."""

from collections.abc import Mapping, Sequence

import duckdb

from assets.findings import SHOWN, Finding, counted, listed, note
from assets.joins.columns import Columns, cell
from assets.lake import sql_among, sql_string
from assets.view_settings import SOURCE, Places, Views

MORE = "STRUCT(item VARCHAR, id VARCHAR)[]"  # the type of X_more, the further items of a modality X


def of_sample(modality: str, what: str) -> str:
    """SQL: all that a sample has of a modality, a list, the first one first; a null where it has none.

    Args:
        what: item, or id (of the content).
    """
    return f"list_prepend({modality}_{what}, coalesce([further.{what} for further in {modality}_more], []))"


def set_views(connection: duckdb.DuckDBPyConnection, views: Mapping[str, Views], columns: Columns) -> None:
    """Sets the column `view` of the table `items`: the number, from 1, of an item's view among those of its modality;
    null where that has none, or the item is of another one, which is told.

    Raises:
        ValueError: no source of the modality has the column.
    """
    for modality, said in views.items():
        name = _name(modality, said, columns)
        is_mine = f"modality = {sql_string(modality)}"
        number = f"nullif(list_position({sql_list(said.views)}, {name}), 0)"
        connection.execute(f"UPDATE items SET view = {number} WHERE {is_mine}")
        if said.by == SOURCE:  # those are checked with the settings, or the link table says
            continue
        others = connection.sql(
            f"SELECT source, count(*), "
            f"(list(DISTINCT {name} ORDER BY {name}) FILTER ({name} IS NOT NULL))[:{SHOWN + 1}] FROM items "
            f"WHERE {is_mine} AND view IS NULL AND status = 'present' GROUP BY 1 ORDER BY 1"
        ).fetchall()
        for source, count, values in others:
            what = f"column {said.by!r} has {listed(values)} there" if values else f"column {said.by!r} is empty"
            words = (
                f"source {source}: {counted(count, 'item')} of no view of {modality} ({', '.join(said.views)}): {what}"
            )
            note(connection, Finding("unknown_view", words))


def _name(modality: str, views: Views, columns: Columns) -> str:
    """SQL: what an item's view is called."""
    if views.by == SOURCE:
        return "source"
    sources = [s for s in columns.settings.values() if s.modality == modality]
    having = [s for s in sources if views.by in columns.sources[s.name]]
    if not having and not all(s.name in columns.empty for s in sources):
        there = sorted({name for s in sources for name in columns.sources[s.name]})
        raise ValueError(
            f"align.several.{modality}: no source of {modality} has a column {views.by!r} (by); there are "
            f"{', '.join(there) or 'none'}, and `source`"
        )
    values = {s.name: "key" if s.keys == (views.by,) else cell("attributes", views.by) for s in having}
    cases = " ".join(f"WHEN {sql_string(name)} THEN {value}" for name, value in values.items())
    return f"CASE source {cases} END" if cases else "nullif(source, source)"


def sql_list(values: Sequence[str | int]) -> str:
    return f"[{', '.join(str(value) if isinstance(value, int) else sql_string(value) for value in values)}]"


def view_name(several: Mapping[str, Places], modality: str = "modality", view: str = "view") -> str:
    """SQL: what the view of that number is called; null where its modality has none."""
    named = {m: places.views for m, places in several.items() if isinstance(places, Views)}
    cases = " ".join(f"WHEN {sql_string(m)} THEN {sql_list(names)}[{view}]" for m, names in named.items())
    return f"CASE {modality} {cases} END" if cases else "NULL::VARCHAR"


def most_of(places: Places) -> int:
    return len(places.views) if isinstance(places, Views) else places


def unused(several: Mapping[str, Places], is_viewed: str = "view IS NOT NULL") -> str:
    """SQL of the cases in which an item of a modality of several is in no sample.

    Args:
        is_viewed: SQL, whether it is of a view.
    """
    viewed = sql_among("modality", [m for m, places in several.items() if isinstance(places, Views)])
    return (
        f"WHEN {viewed} AND NOT ({is_viewed}) THEN 'no_view' WHEN {viewed} THEN 'same_view' "
        f"WHEN {sql_among('modality', several)} THEN 'over_several'"
    )


def gathered(items: str, by: str, order: str, several: Mapping[str, Places]) -> str:
    """SQL that makes one row of the items of each `by` and modality that a sample may have together: the first one's
    `item_id`, `id` and `unit`, `more`, the others, as many as there may be, and `views`, the names of those of all.

    Args:
        items: SQL of a relation with these columns, modality, view and what `order` names; other modalities are left
            out, and of views all but the first of each.
    """
    most = " ".join(f"WHEN {sql_string(modality)} THEN {most_of(places)}" for modality, places in several.items())
    further = f"parts[2:{f'CASE modality {most} END' if most else 1}]"
    viewed = [m for m, places in several.items() if isinstance(places, Views)]
    among, has_views = sql_among("modality", several), sql_among("modality", viewed)
    first = f"row_number() OVER (PARTITION BY {by}, modality, view ORDER BY {order}) = 1"
    one = f"QUALIFY NOT ({has_views}) OR view IS NOT NULL AND {first}" if viewed else ""
    listed_parts = (
        "list({'item': item_id, 'id': id, 'unit': unit, 'view': " + view_name(several) + f"}} ORDER BY view, {order})"
    )
    return f"""
        SELECT {by}, modality, parts[1].item AS item_id, parts[1].id AS id, parts[1].unit AS unit,
          [{{'item': part.item, 'id': part.id}} for part in {further}] AS more,
          CASE WHEN {has_views} THEN [part.view for part in parts] END AS views
        FROM (
          SELECT {by}, modality, {listed_parts} AS parts FROM (SELECT * FROM ({items}) WHERE {among} {one}) GROUP BY ALL
        )
        """
