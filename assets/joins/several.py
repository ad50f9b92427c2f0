"""Several items of one modality in a sample (`align.several`), in a defined order."""

from collections.abc import Mapping

from assets.lake import sql_among, sql_string

MORE = "STRUCT(item VARCHAR, id VARCHAR)[]"  # the type of X_more, the further items of a modality X


def of_sample(modality: str, what: str) -> str:
    """SQL: all that a sample has of a modality, a list, the first one first; a null where it has none.

    Args:
        what: item, or id (of the content).
    """
    return f"list_prepend({modality}_{what}, coalesce([further.{what} for further in {modality}_more], []))"


def gathered(items: str, by: str, order: str, several: Mapping[str, int]) -> str:
    """SQL that makes one row of the items of each `by` and modality that a sample may have together: the first one's
    `item_id`, `id` and `unit`, and `more`, the others, as many as there may be.

    Args:
        items: SQL of a relation with these columns, the modality and what `order` names; other modalities are left out.
    """
    most = " ".join(f"WHEN {sql_string(modality)} THEN {n}" for modality, n in several.items())
    further = f"parts[2:{f'CASE modality {most} END' if most else 1}]"
    among = sql_among("modality", several)
    listed = f"list({{'item': item_id, 'id': id, 'unit': unit}} ORDER BY {order})"
    return f"""
        SELECT {by}, modality, parts[1].item AS item_id, parts[1].id AS id, parts[1].unit AS unit,
          [{{'item': part.item, 'id': part.id}} for part in {further}] AS more
        FROM (SELECT {by}, modality, {listed} AS parts FROM ({items}) WHERE {among} GROUP BY ALL)
        """
