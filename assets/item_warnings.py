"""What is odd of items that could be read: of their content, as their clean rows say, and of their own names."""

import pyarrow as pa

from assets.lake import Lake
from training.modalities.base import Modality

_ITEMS = """
SELECT source, uri, member, "row", c.* EXCLUDE (cut) FROM manifest m
JOIN clean_{modality} c ON parent_id = sha256 AND c.cut IS NOT DISTINCT FROM m.cut
WHERE modality = '{modality}' AND fingerprint = $clean
"""
_OF_CONTENT = """
SELECT DISTINCT source, uri, member, "row", unnest(warnings) AS warning FROM ({items}) WHERE len(warnings) > 0
"""
# The content is one whatever it is called, and may be called several names: so this is no warning of the clean row.
_OF_NAME = """
SELECT DISTINCT source, uri, member, "row", 'named like ' || formats[1] || ', but the content is ' || format AS warning
FROM ({items}) JOIN suffixes ON suffix = lower(regexp_extract(coalesce(member, uri), '\\.[^./]*$'))
WHERE NOT list_contains(formats, format)
"""


def item_warnings(lake: Lake, modality: Modality, fingerprint: str, most: int) -> tuple[int, pa.Table]:
    """How many there are of the items whose clean rows have this fingerprint; `source`, `uri`, `member`, `row` and
    `warning` of the first of them."""
    items = _ITEMS.format(modality=modality.name)
    query = _OF_CONTENT.format(items=items)
    query += f" UNION ALL {_OF_NAME.format(items=items)}" if modality.suffixes else ""
    with lake.connect(query) as connection:
        suffixes = {"suffix": list(modality.suffixes), "formats": list(modality.suffixes.values())}
        connection.register("suffixes", pa.table(suffixes))
        connection.execute(f"CREATE TEMP TABLE warned AS {query}", {"clean": fingerprint})
        (total,) = connection.sql("SELECT count(*) FROM warned").fetchall()[0]
        first = connection.sql(f'FROM warned ORDER BY uri, member, "row", warning LIMIT {most}').to_arrow_table()
        return total, first
