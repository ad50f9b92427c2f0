"""What a run would make anew: for how many contents, of which table, and why. Nothing is written."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from assets.featurizing import table_of, todo_query
from assets.lake import Lake, sql_string
from assets.processing import CLEAN_STEP, FEATURES_STEP, LIMITS, Step, features_step

UNRECORDED = "made by other settings or versions, which are not recorded"
_MANY = 1000  # differences, where they are not known

_ASKED = """
SELECT part.item_id, part.source, sha256, part.cut AS cut, concat(sha256, part.cut) AS content,
  unnest(part.need) AS step
FROM (SELECT sha256, unnest(parts) AS part FROM ({todo}))
"""
# Of each content and step that is asked for why it is. `others` says of each fingerprint but the present one of a step
# what is different; where several have made rows of a content, that of the last dataset counts, or the one that differs
# least.
_REASONS = """
WITH refused AS (
  SELECT concat(sha256, cut) AS content,
    arg_min('tried again: ' || coalesce(why, $unread), coalesce(differences, 0)) AS why
  FROM (SELECT DISTINCT sha256, cut, fingerprint FROM quarantine
    WHERE modality = $modality AND stage IN ('clean', 'featurize'))
  LEFT JOIN (FROM others WHERE step IN ('clean', 'limits', 'refused')) USING (fingerprint) GROUP BY 1
), cleaned AS (
  SELECT concat(parent_id, cut) AS content, arg_min(why, differences) AS why
  FROM clean_{modality} JOIN others USING (fingerprint) WHERE step = 'clean' GROUP BY 1
), present AS (
  SELECT DISTINCT concat(parent_id, cut) AS content, id FROM clean_{modality} WHERE fingerprint = $clean
), made AS (
  SELECT content, step, arg_min(why, differences) AS why
  FROM present JOIN {modality}_features USING (id) JOIN others USING (fingerprint) WHERE step <> 'refused' GROUP BY 1, 2
  UNION ALL
  SELECT content, filter AS step, arg_min(why, differences) AS why
  FROM present JOIN measurements USING (id) JOIN (SELECT fingerprint, why, differences FROM others) USING (fingerprint)
  WHERE modality = $modality GROUP BY 1, 2
  UNION ALL
  SELECT content, 'signature' AS step, arg_min(why, differences) AS why
  FROM present JOIN signatures USING (id) JOIN others USING (fingerprint)
  WHERE modality = $modality GROUP BY 1
), why_clean AS (
  SELECT content, any_value(coalesce(c.why, r.why,
    CASE WHEN b.item_id IS NULL THEN 'new' WHEN b.sha256 <> a.sha256 THEN 'changed'
      ELSE 'cut otherwise (segments of ' || a.source || ')' END)) AS why
  FROM asked a LEFT JOIN refused r USING (content) LEFT JOIN cleaned c USING (content)
  LEFT JOIN before b ON b.item_id = a.item_id WHERE step = 'clean' GROUP BY 1
)
SELECT step, why, count(*) AS n FROM (
  SELECT step, coalesce(w.why, m.why, CASE step WHEN 'features' THEN r.why END,
    CASE WHEN list_contains($new, step) THEN 'filters.{modality}: ' || step || ' is new'
      WHEN starts_with(step, 'features ') THEN 'features.{modality}: ' || step[10:] || ' is new' END,
    'not there yet') AS why
  FROM asked LEFT JOIN why_clean w USING (content) LEFT JOIN made m USING (content, step)
  LEFT JOIN refused r USING (content)
) GROUP BY ALL ORDER BY step, n DESC, why
"""


@dataclass(frozen=True)
class Work:
    """What a run would make anew of one table."""

    contents: int  # each a row, or as many as it is cut into, or a refusal; the run's `computed` is the same
    why: Mapping[str, int]  # in words -> contents


def asked_of(lake: Lake, step: Step, within: str | None = None) -> pa.Table:
    """What a run would ask of each step: `item_id`, `source`, `sha256`, `cut`, `content` (of both) and `step`.

    Args:
        lake: with the manifest that the run would write in the place of the stored one (`Lake.instead`).
        within: SQL condition of the manifest's rows that the run is for; null: all.
    """
    todo, parameters = todo_query(step, within)
    return lake.sql(_ASKED.format(todo=todo), parameters)


def workload(lake: Lake, step: Step, asked: pa.Table, before: pa.Table | None) -> dict[str, Work]:
    """Table (`table_of`) -> what the run would do, where it would do anything.

    Args:
        asked: see `asked_of`.
        before: the stored manifest's columns `item_id` and `sha256`; null before the first run.
    """
    if before is None or not asked.num_rows:
        counts = Counter(asked["step"].to_pylist())
        return {table_of(step.modality, name): Work(n, {"new": n}) for name, n in sorted(counts.items())}
    measured = set(lake.sql("SELECT DISTINCT filter FROM measurements")["filter"].to_pylist())
    new = [kind for kind in step.filters if kind not in measured]
    unread = "it could not be read"
    query = _REASONS.format(modality=step.modality)
    with lake.connect(query) as connection:
        for name, table in {"asked": asked, "before": before, "others": _others(lake, step)}.items():
            connection.register(name, table)
        parameters = {"modality": step.modality, "clean": step.fingerprints[CLEAN_STEP], "new": new, "unread": unread}
        rows = connection.sql(query, params=parameters).to_arrow_table().to_pylist()
    reasons: dict[str, dict[str, int]] = {}
    for row in rows:
        reasons.setdefault(table_of(step.modality, row["step"]), {})[row["why"]] = row["n"]
    return {table: Work(sum(why.values()), why) for table, why in reasons.items()}


def _others(lake: Lake, step: Step) -> pa.Table:
    """Each fingerprint of stored rows of the modality, and the step that would now make them under another one: what is
    different now, and how much is."""
    modality, named = step.modality, step.parts()
    tables = f"clean_{modality}", f"{modality}_features"
    stored = " UNION ".join(
        [
            *(f"SELECT fingerprint FROM {table}" for table in tables),
            *(
                f"SELECT fingerprint FROM {table} WHERE modality = {sql_string(modality)} AND fingerprint IS NOT NULL"
                for table in ("measurements", "signatures", "quarantine")
            ),
        ]
    )
    told = {key: json.loads(json.dumps(parts)) for key, (_, parts) in named.items()}  # as JSON gives them back
    steps = {row["fingerprint"]: row for row in lake.sql("SELECT DISTINCT * FROM steps").to_pylist()}
    told |= {key: json.loads(row["parts"]) for key, row in steps.items()}
    # Of each step its present fingerprints; of the limits several, the last of which names all.
    present = {name: [key] for name, key in step.fingerprints.items()}
    present |= {LIMITS: [key for key, (name, _) in named.items() if name == LIMITS], "refused": [step.refusing]}
    first = next(iter(step.feature_rows))
    present[FEATURES_STEP] = present[first]  # where all of them are made
    last = json.loads(lake.note("dataset").get("features", "{}")).get(modality)
    rows = []
    for key in lake.sql(stored)["fingerprint"].to_pylist():
        for name in present if key not in steps else _made_by(steps[key]["step"], told[key].get("tensors"), first):
            if key in present.get(name, ()):
                continue
            known = key in steps and name in present  # not of a filter that is there no more
            words = list(_differences(modality, told[present[name][-1]], told[key], told)) if known else []
            differences = -1 if key == last else len(words) or _MANY
            why = "; ".join(words) or UNRECORDED
            rows.append({"fingerprint": key, "step": name, "why": why, "differences": differences})
    strings = ((name, pa.string()) for name in ("fingerprint", "step", "why"))
    return pa.Table.from_pylist(rows, pa.schema([*strings, ("differences", pa.int64())]))


def _made_by(step: str, tensors: Sequence[str] | None, first: str) -> list[str]:
    """What would make, or refuse, the stored rows of a step now. Args: `tensors` as `Processor.parts` says them,
    `first` what makes the first feature rows."""
    if step != FEATURES_STEP:
        return [step]
    return [features_step(tensors)] if tensors else [first, FEATURES_STEP, "refused"]


def _differences(
    modality: str, now: Mapping[str, Any], then: Mapping[str, Any], told: Mapping[str, Mapping[str, Any]]
) -> Iterator[str]:
    """What is different between the parts of two fingerprints of a step, in words that name settings.

    Args:
        told: fingerprint -> its parts.
    """
    features = f"features.{modality}"
    if then.get("kind") != now.get("kind"):
        yield f"{features}.kind: {_words(then.get('kind'))} -> {_words(now.get('kind'))}"
        return  # its settings are others
    before, after = then.get("compression"), now.get("compression")
    if before != after:
        yield f"{features}.compression: {_compression(before)} -> {_compression(after)}"
    for part, value in now.items():
        old: Any = then.get(part)
        if value == old or part == "compression":
            continue
        if part == "clean":
            yield from _differences(modality, told[value], told[old], told) if old in told else [UNRECORDED]
        elif part in ("settings", "limits"):
            section = features if part == "settings" else part
            for name in sorted(name for name in value if name in old and value[name] != old[name]):
                yield f"{section}.{name}: {_words(old[name])} -> {_words(value[name])}"
        elif part == "packages":
            for name in sorted(name for name in value if value[name] != old.get(name)):
                yield f"{name} {old.get(name, 'absent')} -> {value[name]}"
        elif part == "version":
            yield f"version of the step: {old} -> {value}"
        elif part == "decoded_size":
            yield f"{features}: pictures are decoded to {_words(old)} -> {_words(value)} pixels"
        else:  # files of models, the code of a user's own kind
            yield f"{features if part == 'files' else 'the filter'}: its files or its code"


def _compression(parts: Mapping[str, Any] | None) -> str:
    return "none" if parts is None else _words({"kind": parts["kind"], **parts["settings"]})


def _words(value: Any) -> str:
    """A setting's value as the project file says it."""
    return "all" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
