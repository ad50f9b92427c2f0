"""Filters decide in SQL, from what the clean step measured, which contents samples may have; so do lowered limits.

Nothing is decoded: a threshold that moves is a query.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import pyarrow as pa

from assets.lake import Lake, sql_string
from assets.processing import CLEAN_STEP, Step
from training.schema import QUARANTINE

TIMES = ("start", "seconds")  # of contents that have a place in time


class Rule(NamedTuple):
    """What decides about a content: the first rule that it breaks refuses it."""

    reason: str  # of the quarantine row
    name: str  # of what is decided on, for a person
    value: str | None  # SQL over the clean table; None: the measurement of the filter called like the reason
    keeps: str  # SQL condition
    expected: str  # what may pass, for a person
    shown: str  # SQL of the value, for a person


def rules(step: Step) -> list[Rule]:
    """Of a modality: its limits, which a content may have been within when it was decoded, then its filters."""
    limits = step.processor.limits
    listed: list[Rule] = []
    for name, value in step.processor.modalities[step.modality].limits.items():
        most = getattr(limits, name)
        it, expected = f"v{len(listed)}", f"at most {most} (raise limits.{name})"
        listed.append(Rule("too_large", value, value, f"{it} <= {most}", expected, f"{it}::VARCHAR"))
    for kind, rule in step.filters.items():
        it, expected = f"v{len(listed)}", f"{rule.expected()} (filters.{step.modality}.{kind})"
        listed.append(Rule(kind, kind, rule.value, rule.keeps(it), expected, rule.shown(it)))
    return listed


def apply_filters(lake: Lake, step: Step, sources: Collection[str]) -> tuple[pa.Table, pa.Table]:
    """Of what these sources list: the clean contents that pass (id, parent_id, cut; where there are such columns, start
    and seconds), and rows of `quarantine` (stage filter) for each item with others."""
    decided = rules(step)
    judged, parameters = _judged(step, decided)
    reasons, expected, names = (
        f"[{', '.join(sql_string(getattr(rule, part)) for rule in decided)}]::VARCHAR[]"
        for part in ("reason", "expected", "name")
    )
    of_them = {"modality": step.modality, "sources": list(sources)}
    with lake.connect(f"{judged} manifest") as connection:
        connection.execute(f"CREATE TEMP TABLE judged AS {judged}", parameters)
        kept = connection.sql(
            'SELECT * EXCLUDE (broken, "values") FROM judged WHERE broken IS NULL AND concat(parent_id, cut) IN '
            f"(SELECT concat(sha256, cut) FROM {_LISTED}) ORDER BY id, cut",
            params=of_them,
        ).to_arrow_table()
        refused = connection.sql(
            f"""
            SELECT 'filter' AS stage, 'quarantined' AS outcome, ({reasons})[broken] AS reason,
              concat(uri, '/' || member, ', row ' || "row", ': ', ({names})[broken], ' is ',
                coalesce("values"[broken], 'unknown'), ', expected ', ({expected})[broken]) AS message,
              item_id, source, modality, key, uri, member, "row", sha256, m.cut, $key AS fingerprint
            FROM judged j JOIN {_LISTED} m ON sha256 = parent_id AND m.cut IS NOT DISTINCT FROM j.cut
            WHERE broken IS NOT NULL ORDER BY item_id, id
            """,
            params={**of_them, "key": parameters["clean"]},
        ).to_arrow_table()
    return kept, pa.table([refused[field.name].cast(field.type) for field in QUARANTINE], schema=QUARANTINE)


_LISTED = "(FROM manifest WHERE modality = $modality AND source IN (SELECT unnest($sources)))"


def _judged(step: Step, decided: Sequence[Rule]) -> tuple[str, dict[str, str]]:
    """SQL that gives each clean content the number (from 1) of the first rule that it breaks, as `broken`."""
    keys, columns = step.fingerprints, step.processor.modalities[step.modality].columns
    kept = ", ".join(f"c.{name}" for name in ("id", "parent_id", "cut", *(n for n in TIMES if n in columns)))
    joins, values, parameters = [], [], {"clean": keys[CLEAN_STEP]}
    for n, rule in enumerate(decided):
        if rule.value is None:
            parameters[f"measure{n}"] = keys[rule.reason]
            joins.append(
                "LEFT JOIN (SELECT id, any_value(value) AS measured FROM measurements "
                f"WHERE filter = {sql_string(rule.reason)} AND fingerprint = $measure{n} GROUP BY id) m{n} "
                f"ON m{n}.id = c.id"
            )
        values.append(f", {rule.value or f'm{n}.measured'} AS v{n}")
    cases = " ".join(
        ["WHEN false THEN 0"]
        + [f"WHEN NOT coalesce({rule.keeps}, false) THEN {n + 1}" for n, rule in enumerate(decided)]
    )
    texts = ", ".join(rule.shown for rule in decided)
    return (
        f"""
        WITH clean AS (
          SELECT * FROM clean_{step.modality} WHERE fingerprint = $clean
          QUALIFY row_number() OVER (PARTITION BY id, cut) = 1
        ), measured AS (SELECT {kept} {"".join(values)} FROM clean c {" ".join(joins)})
        SELECT {kept}, CASE {cases} END AS broken, [{texts}]::VARCHAR[] AS "values" FROM measured c
        """,
        parameters,
    )
