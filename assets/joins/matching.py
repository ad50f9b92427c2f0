"""Keys that match nothing: how many of each source, and what they would match in another spelling."""

from typing import NamedTuple

import duckdb

from assets.findings import SHOWN, quoted
from assets.lake import sql_string

_WIDE, _NARROW = (sql_string("".join(map(chr, range(first, first + 94)))) for first in (0xFF01, 0x21))
# What spellings of one key differ in -> SQL that takes it away.
_DIFFERENCES = {
    "case": "lower(x)",
    "the suffix": r"regexp_replace(x, '\.[A-Za-z][A-Za-z0-9]{0,4}$', '')",
    "the folder": r"regexp_replace(x, '^.*[/\\]', '')",
    "leading zeros": r"regexp_replace(x, '(^|[^0-9])0+([0-9])', '\1\2', 'g')",
    "spaces and punctuation": r"regexp_replace(x, '[\s_\-.]+', '', 'g')",
    "accents": "strip_accents(x)",
    "invisible characters": r"regexp_replace(x, '[\x{00AD}\x{200B}-\x{200F}\x{2060}\x{FEFF}]', '', 'g')",
    # slow, and in vain where all characters are of one byte
    "full-width characters": f"CASE WHEN strlen(x) = length(x) THEN x ELSE translate(x, {_WIDE}, {_NARROW}) END",
}
_DIGITS = "nullif(regexp_replace(x, '[^0-9]', '', 'g'), '')"


class Unmatched(NamedTuple):
    """Of the keys of one source, or of the cells that name them."""

    source: str
    modality: str
    keys: int  # distinct ones
    unmatched: int
    examples: list[str]
    near: list[str]  # what would match and how, in words

    @property
    def advice(self) -> str:
        return f"; of these {', '.join(self.near)}" if self.near else ""


def unmatched(connection: duckdb.DuckDBPyConnection, keys: str, others: str, beside: str) -> list[Unmatched]:
    """Sources with keys that nothing among the others equals.

    Args:
        keys: SQL that gives source, modality and key.
        others: the same, of what can be matched.
        beside: SQL condition on `k` and `o` that says which others a key may match.
    """
    connection.execute(
        f"""
        CREATE OR REPLACE TEMP TABLE other_keys AS
        SELECT DISTINCT source, modality, key FROM ({others}) WHERE key <> '';
        CREATE OR REPLACE TEMP TABLE own_keys AS
        SELECT k.*, EXISTS (FROM other_keys o WHERE o.key = k.key AND {beside}) AS matched
        FROM (SELECT DISTINCT source, modality, key FROM ({keys}) WHERE key <> '') k;
        """
    )
    counts = connection.sql(
        f"""
        SELECT source, any_value(modality), count(*), count_if(NOT matched),
          (list(key ORDER BY key) FILTER (NOT matched))[:{SHOWN}]
        FROM own_keys GROUP BY source HAVING count_if(NOT matched) > 0 ORDER BY source
        """
    ).fetchall()
    if not counts:
        return []
    near = _near(connection, beside)
    return [
        Unmatched(source, modality, all_of_them, missed, examples, near.get(source, []))
        for source, modality, all_of_them, missed, examples in counts
    ]


def _near(connection: duckdb.DuckDBPyConnection, beside: str) -> dict[str, list[str]]:
    """Source -> what its unmatched keys would match without one of the differences; if more would without several of
    them, or by their digits alone, that, too."""
    macros = [*_DIFFERENCES.values(), _nested(len(_DIFFERENCES)), _DIGITS]
    found: dict[str, list[str]] = {}
    most: dict[str, int] = {}
    ways = [*(f"without {what}" for what in _DIFFERENCES), "without several such differences", "by their digits alone"]
    for number, way in enumerate(ways):
        connection.execute(f"CREATE OR REPLACE TEMP MACRO without_{number}(x) AS {macros[number]}")
        plain = f"without_{number}(key) AS plain"
        # One partner each: without their folders, a million names may be a few.
        rows = connection.sql(
            f"""
            WITH o AS (SELECT source, modality, {plain}, min(key) AS key FROM other_keys GROUP BY 1, 2, 3),
            k AS (SELECT source, modality, {plain}, key FROM own_keys WHERE NOT matched)
            SELECT k.source, count(DISTINCT k.key), arg_min([k.key, o.key], [k.key, o.key])
            FROM k JOIN o ON k.plain = o.plain AND {beside} GROUP BY 1
            """
        ).fetchall()
        for source, n, (key, other) in rows:
            if number < len(_DIFFERENCES) or n > most.get(source, 0):
                words = f"{n:,} would match {way} ({quoted(key)} and {quoted(other)})"
                found.setdefault(source, []).append(words)
            most[source] = max(n, most.get(source, 0))
    return found


def _nested(count: int) -> str:
    """SQL that takes away the first so many differences, one after the other."""
    return "x" if count == 0 else f"without_{count - 1}({_nested(count - 1)})"
