"""What people say of answers, as pairs of answers to the same inputs of which one is preferred.

An answer marked wrong, with the right one told, loses to that; one marked right is preferred to the next best that was
logged with it. What was asked has to be known: contents of the lake are, by their features; others where `answers`
keeps them, and their features are then made here. Each answer that gives no pair is counted with the reason.
"""

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from assets.featurizing import make_processor, process_modality
from assets.lake import Lake
from assets.settings import Project
from assets.sources.base import Entry, Source
from training.catalog import MODALITIES as KINDS
from training.schema import MANIFEST, PREFERENCES
from training.spec import PREFERENCE

DISAGREE = "people do not agree about it"
WITHHELD = "it was withheld, or is no single word or text"
NOT_TOLD = "the right answer was not told"
NO_OTHER = "it is right, and no other answer was logged with it"
NOT_THERE = "what was asked is not known (answers.inputs keeps it), or cannot be read"
JUDGED = "it is about contents that models are judged by (validation, test)"
GONE = "the answer is no longer logged"

_SAID = """
SELECT f.*, a.answer_id IS NOT NULL AS is_there, inputs, prediction, best FROM (
  SELECT answer_id, list(DISTINCT verdict) AS verdicts, list(DISTINCT answer) FILTER (answer IS NOT NULL) AS told
  FROM (SELECT DISTINCT ON (answer_id, "by") * FROM feedback ORDER BY answer_id, "by", time DESC) GROUP BY 1
) f LEFT JOIN answers a USING (answer_id) ORDER BY answer_id
"""


class Pair(NamedTuple):
    chosen: str
    rejected: str


@dataclass(frozen=True)
class Pairs:
    """What feedback comes to."""

    rows: pa.Table  # training.schema.PREFERENCES
    left_out: Mapping[str, int]  # reason -> answers that give no pair

    @property
    def words(self) -> str:
        """12 pairs; 3 answers give none: 2 the right answer was not told, ..."""
        why = ", ".join(f"{n:,}: {reason}" for reason, n in self.left_out.items())
        none = f"; {sum(self.left_out.values()):,} answers give none ({why})" if why else ""
        return f"{self.rows.num_rows:,} pairs of answers{none}"


def pair_of(
    verdicts: Collection[str], told: Sequence[str], prediction: str | None, best: Iterable[Mapping[str, Any]]
) -> Pair | str:
    """The pair that an answer gives, or why it gives none.

    Args:
        verdicts, told: what people say now, each once.
        prediction: as JSON.
        best: the most probable answers (`training.schema.BEST`), the best first.
    """
    if len(verdicts) > 1 or len(told) > 1:
        return DISAGREE
    said = json.loads(prediction or "null")
    if not isinstance(said, str):
        return WITHHELD
    if "wrong" in verdicts:
        return Pair(told[0], said) if told else NOT_TOLD
    other = next((one["answer"] for one in best if one["answer"].strip() != said.strip()), None)
    return NO_OTHER if other is None else Pair(said, other)


def collect_pairs(lake: Lake, project: Project) -> Pairs:
    """The pairs of all feedback there is; features of what was asked are made where they lack."""
    left_out, found = Counter[str](), []
    for row in lake.sql(_SAID).to_pylist():
        pair = pair_of(row["verdicts"], row["told"] or (), row["prediction"], row["best"] or ())
        if not row["is_there"] or isinstance(pair, str):
            left_out[pair if row["is_there"] and isinstance(pair, str) else GONE] += 1
        else:
            found.append((row, pair))
    known, judged = _asked(lake, project, [row for row, _ in found]), _judged(lake, project)
    rows = []
    for row, pair in found:
        made = _row(row, pair, project, known)
        of = {content for m in judged for content in _contents(row["inputs"], m)}
        why = NOT_THERE if made is None else JUDGED if any(of & judged[m] for m in judged) else None
        if why is not None:
            left_out[why] += 1
        else:
            rows.append(made)
    return Pairs(pa.Table.from_pylist(rows, PREFERENCES), dict(left_out))


class _Known(NamedTuple):
    """What is known of what was asked."""

    features: Mapping[str, set[str]]  # modality -> contents that have the present features
    values: Mapping[str, str]  # content -> text, of the prompt's columns


def _contents(inputs: Sequence[Mapping[str, Any]], name: str) -> list[str]:
    return [one["sha256"] for one in inputs if one["name"] == name]


def _row(row: Mapping[str, Any], pair: Pair, project: Project, known: _Known) -> dict[str, Any] | None:
    """A row of PREFERENCES; None where not all that was asked is known."""
    given = {m: some for m in project.inputs if (some := _contents(row["inputs"], m))}
    columns = {c: some[0] for c in project.asked_columns if (some := _contents(row["inputs"], c))}
    is_known = given and all(known.features[m].issuperset(some) for m, some in given.items())
    if not is_known or not known.values.keys() >= set(columns.values()):
        return None
    contents: dict[str, Any] = {f"{m}_id": some[0] for m, some in given.items()}
    contents |= {f"{m}_more": some[1:] for m, some in given.items() if len(some) > 1}
    attributes = json.dumps({column: known.values[content] for column, content in columns.items()})
    return {"answer_id": row["answer_id"], **pair._asdict(), **contents, "attributes": attributes}


class _Asked(Source):
    """What people asked, as the lake keeps it."""

    def __init__(self, lake: Lake) -> None:
        super().__init__(Path(), None)
        self._lake = lake

    def list(self) -> Iterator[Entry]:
        return iter(())

    def open(self, entry: Entry) -> Iterator[bytes]:
        rows = self._lake.sql("SELECT data FROM answer_inputs WHERE sha256 = $id LIMIT 1", {"id": entry.key})
        yield from rows["data"].to_pylist()


def _asked(lake: Lake, project: Project, rows: Sequence[Mapping[str, Any]]) -> _Known:
    """Makes features of what was asked and is kept, where they lack; tells what is known then."""
    asked = [one for row in rows for one in row["inputs"]]
    texts = {one["sha256"]: one["text"] for one in asked if one["text"] is not None}
    processor, features = make_processor(project), dict[str, set[str]]()
    for modality in project.inputs:
        wanted = sorted({one["sha256"] for one in asked if one["name"] == modality})
        query = f"SELECT DISTINCT id FROM {modality}_features WHERE fingerprint = $made AND id IN (SELECT unnest($ids))"
        parameters = {"made": processor.fingerprint(modality), "ids": wanted}
        features[modality] = set(lake.sql(query, parameters)["id"].to_pylist())
        lacking = [content for content in wanted if content not in features[modality]]
        if listed := _as_items(lake, modality, lacking, texts):
            manifest = pa.Table.from_pylist(listed, MANIFEST)
            process_modality(
                replace(lake, instead={"manifest": manifest}), project, modality, "true", {_SOURCE: _Asked(lake)}
            )
            features[modality] = set(lake.sql(query, parameters)["id"].to_pylist())
    named = sorted({one["sha256"] for one in asked if one["name"] in project.asked_columns} - texts.keys())
    kept = lake.sql("SELECT sha256, data FROM answer_inputs WHERE sha256 IN (SELECT unnest($ids))", {"ids": named})
    return _Known(features, texts | {row["sha256"]: row["data"].decode() for row in kept.to_pylist()})


_SOURCE = "answers"  # what manifest rows of what was asked call where they lie


def _as_items(lake: Lake, modality: str, contents: Sequence[str], texts: Mapping[str, str]) -> list[dict[str, Any]]:
    """Those of the contents that are kept as rows of a manifest."""
    is_text = KINDS.load(modality).is_text
    data = "data" if is_text else "NULL"
    query = f"SELECT DISTINCT ON (sha256) sha256, octet_length(data) AS size, {data} AS data FROM answer_inputs"
    kept = lake.sql(f"{query} WHERE sha256 IN (SELECT unnest($ids))", {"ids": list(contents)}).to_pylist()
    items = {row["sha256"]: (row["size"], row["data"].decode() if is_text else None) for row in kept}
    items |= {c: (len(texts[c].encode()), texts[c]) for c in contents if c in texts}
    return [
        {"item_id": f"{_SOURCE}/{content}", "source": _SOURCE, "modality": modality, "key": content, "sha256": content}
        | {"uri": f"{_SOURCE}/{content}", "size": size, "text": text, "attributes": "{}"}
        for content, (size, text) in items.items()
    ]


def _judged(lake: Lake, project: Project) -> dict[str, set[str]]:
    """Modality that must not stand on two sides of a split -> contents of rows that models are judged by, and what
    these were cut from."""
    media = [m for m in project.modalities if not KINDS.load(m).is_text] or list(project.modalities)
    found = {}
    for m in (m for m in media if m not in project.align.allow_shared):
        query = f"""
            WITH judged AS (
              SELECT unnest([{m}_id] || coalesce({m}_more, [])) AS id FROM dataset
              WHERE split IN ('validation', 'test')
            )
            SELECT id FROM judged UNION SELECT parent_id FROM clean_{m} SEMI JOIN judged USING (id)
        """
        found[m] = set(lake.sql(query)["id"].to_pylist()) - {None}
    return found


def taught_by(project: Project, answers: Collection[str]) -> dict[str, list[str]]:
    """Of these answers, those that versions have learned from -> their MLflow runs."""
    from training.preference_run import REPORT
    from training.runs import TAG, find_json, search

    found: dict[str, list[str]] = {}
    for run in search(project.mlflow_uri, project.name, status="FINISHED") if answers else ():
        if run.data.tags.get(f"{TAG}role") == PREFERENCE:
            said = find_json(project.mlflow_uri, run.info.run_id, REPORT) or {}
            for answer in set(answers).intersection(said.get("answers", ())):
                found.setdefault(answer, []).append(run.info.run_id)
    return found
