"""What a person should know of a project's items and samples, though no step fails of it."""

from collections.abc import Sequence
from dataclasses import dataclass

import duckdb

DIFFERING = "differing_duplicate"  # the code of `differing_duplicates`, and the reason of the rows of quarantine
REFUSED = "refused"  # the code of `refusals`
_MANY = 0.5  # of a source's items: when so many are refused, that is the first thing to be told
SHOWN = 3  # examples of many
_LONGEST = 80  # characters of an example


@dataclass(frozen=True)
class Finding:
    """`code` says what kind it is, for programs; `message` is a sentence that counts and gives examples."""

    code: str
    message: str


def quoted(name: str) -> str:
    """A key, label or other cell in a message: on one line, and cut where it is long."""
    return repr(name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…")


def counted(n: int, noun: str) -> str:
    return f"{n:,} {noun}" + ("" if n == 1 else "es" if noun.endswith("s") else "s")


def listed(names: Sequence[str], most: int = SHOWN) -> str:
    """Some of the names in a message, and how many more there are."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(map(quoted, names[:most])) + more


def refusals(connection: duckdb.DuckDBPyConnection, sources: Sequence[str]) -> list[Finding]:
    """Sources of which most items are refused, with reasons; from the tables `items` and `quarantine` of `align`."""
    rows = connection.execute(
        """
        WITH why AS (
          SELECT concat(sha256, cut) AS content, modality, any_value(reason) AS reason, min(message) AS message
          FROM quarantine
          WHERE stage <> 'manifest' AND sha256 IS NOT NULL GROUP BY ALL
        ), outcomes AS (
          SELECT DISTINCT i.source, i.item_id, i.status <> 'present' AS is_refused, w.reason, w.message, i."row" AS line
          FROM items i LEFT JOIN why w
            ON w.content = concat(i.sha256, i.cut) AND w.modality = i.modality AND i.status <> 'present'
          UNION ALL  -- an empty cell is no fault
          SELECT source, item_id, outcome = 'quarantined', reason, message, "row" FROM quarantine
          WHERE stage = 'manifest' AND reason <> 'absent' AND outcome <> 'unmatched'
        ), reasons AS (
          SELECT source, coalesce(reason, 'refused') AS reason, count(*) AS n,
            arg_min(message, coalesce(line, 0)) AS message FROM outcomes WHERE is_refused GROUP BY ALL
        )
        SELECT r.source, sum(n), any_value(total), string_agg(n || ' ' || reason, ', ' ORDER BY n DESC, reason),
          arg_max(message, n) AS message FROM reasons r
        JOIN (SELECT source, count(*) AS total FROM outcomes GROUP BY 1) t ON t.source = r.source
        WHERE r.source = ANY($1) GROUP BY 1 HAVING sum(n) >= $2 * any_value(total) ORDER BY 1
        """,
        [list(sources), _MANY],
    ).fetchall()
    return [
        Finding(REFUSED, f"source {source}: {n:,} of {total:,} items are refused ({reasons}), such as {message}")
        for source, n, total, reasons, message in rows
    ]


def differing_duplicates(connection: duckdb.DuckDBPyConnection) -> list[Finding]:
    """Rows of tables that say something else of a key and content than the first row does, which counts; from the
    table `quarantine` of `align`."""
    ((count, first),) = connection.execute(
        'SELECT count(*), (list(message ORDER BY uri, "row", message))[1] FROM quarantine WHERE reason = $1',
        [DIFFERING],
    ).fetchall()
    if not count:
        return []
    said = f"{counted(count, 'row')} with a key and content that stood before and other values: the first counts"
    return [Finding(DIFFERING, f"{said}, such as {first}")]


def note(connection: duckdb.DuckDBPyConnection, finding: Finding) -> None:
    """Puts a finding into the table that `align` returns."""
    connection.execute("INSERT INTO findings VALUES ($1, $2)", [finding.code, finding.message])
