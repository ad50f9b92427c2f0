"""Keys that match nothing: how many of each source, and what they would match in another spelling."""

from typing import NamedTuple

import duckdb

from assets.findings import SHOWN, Finding, quoted
from assets.lake import sql_string

_WIDE = "".join(map(chr, range(0xFF01, 0xFF5F)))
_NARROW = "".join(map(chr, range(0x21, 0x7F)))
# What spellings of one key differ in -> SQL that takes it away.
_DIFFERENCES = {
    "case": "lower(x)",
    "the suffix": r"regexp_replace(x, '\.[A-Za-z][A-Za-z0-9]{0,4}$', '')",
    "the folder": r"regexp_replace(x, '^.*[/\\]', '')",
    "leading zeros": r"regexp_replace(x, '(^|[^0-9])0+([0-9])', '\1\2', 'g')",
    "spaces and punctuation": r"regexp_replace(x, '[\s_\-.]+', '', 'g')",
    "full-width characters": f"translate(x, {sql_string(_WIDE)}, {sql_string(_NARROW)})",
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
    return [Unmatched(*row[:5], near=near.get(row[0], [])) for row in counts]


def _near(connection: duckdb.DuckDBPyConnection, beside: str) -> dict[str, list[str]]:
    """Source -> what its unmatched keys would match without one of the differences; if more would without several of
    them, or by their digits alone, that, too."""
    macros = [*_DIFFERENCES.values(), _nested(len(_DIFFERENCES)), _DIGITS]
    found: dict[str, list[str]] = {}
    most: dict[str, int] = {}
    for number, what in enumerate([*_DIFFERENCES, "several such differences", "all but digits"]):
        connection.execute(f"CREATE OR REPLACE TEMP MACRO without_{number}(x) AS {macros[number]}")
        alike = f"without_{number}(o.key) = without_{number}(k.key) AND {beside}"
        # Names without their folders may be few: that each key has a partner is asked, not how many.
        rows = connection.sql(
            f"""
            WITH near AS (SELECT source, modality, count(*) AS n, min(key) AS key FROM own_keys k
              SEMI JOIN other_keys o ON {alike} WHERE NOT k.matched GROUP BY ALL)
            SELECT source, n, key, (SELECT min(o.key) FROM other_keys o WHERE {alike}) FROM near k
            """
        ).fetchall()
        for source, n, key, other in rows:
            if number < len(_DIFFERENCES) or n > most.get(source, 0):
                words = f"{n:,} would match without {what} ({quoted(key)} and {quoted(other)})"
                found.setdefault(source, []).append(words)
            most[source] = max(n, most.get(source, 0))
    return found


def _nested(count: int) -> str:
    """SQL that takes away the first so many differences, one after the other."""
    return "x" if count == 0 else f"without_{count - 1}({_nested(count - 1)})"


def note(connection: duckdb.DuckDBPyConnection, finding: Finding) -> None:
    """Puts a finding into the table that `align` returns."""
    connection.execute("INSERT INTO findings VALUES ($1, $2)", [finding.code, finding.message])
