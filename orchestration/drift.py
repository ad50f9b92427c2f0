"""Whether what a model is asked, and what it answers, is still as it was when it was tested.

What the log of answers has of a version stands beside its test rows. A request that is asked again counts once.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.types as pt

from assets import pipeline
from assets.evaluation import recorded_predictions
from assets.settings import Project
from orchestration.nearest import places_of
from training.schema import subset_name
from training.two_samples import Difference, differing, of_categories, of_numbers, of_places

LEAST = 30  # answers, and test rows, that are enough to say something
_MOST = 2000  # answers that are looked at, the newest
_LEVEL = 0.01  # chance to find something where nothing is
WORDS = {
    "given": "which inputs are given",
    "places": "where the model places them",
    "answers": "what it answers",
    "probabilities": "how sure it is",
}
_KINDS = 50  # answers with more values than that are not compared by value


@dataclass(frozen=True)
class Drift:
    project: str
    version: str
    answers: int  # different ones that were looked at
    rows: int  # test rows that they stand beside
    since: str | None  # of the first of these answers
    found: Mapping[str, Difference]  # what was compared (`WORDS`)
    differs: list[str]  # those of it that are others by now

    @property
    def words(self) -> list[str]:
        """A sentence for each thing that was compared."""
        return [f"{WORDS[name]}: {one.size:.3f} apart, p = {one.p:.3g}" for name, one in self.found.items()]


def drift(project: Project, version: str | None = None, since: datetime | None = None) -> Drift:
    """Of a version (a number or an alias; the champion).

    Args:
        since: answers from then on; default: the newest.

    Raises:
        ValueError: there is no such version, or nothing was logged of it.
    """
    from training import model_registry

    uri = project.mlflow_uri
    number = model_registry.find_version(uri, project.name, version or "champion")
    run_id = model_registry.version_run(uri, project.name, number)
    asked = _answers(project, number, since)
    if not asked.num_rows:
        after = f" since {since:%Y-%m-%d %H:%M}" if since else ""
        hint = "" if project.answers.log else f": write `answers: {{log: true}}` into {project.path}"
        raise ValueError(f"no answer of version {number} of {project.name} is logged{after}{hint}")
    tested = recorded_predictions(project, run_id, subset_name(project.inputs))
    found: dict[str, Difference] = {}
    if min(asked.num_rows, tested.num_rows) >= LEAST:
        found = _compared(project, run_id, asked, tested)
    first = asked["time"].to_pylist()[-1].isoformat()
    return Drift(project.name, number, asked.num_rows, tested.num_rows, first, found, differing(found, _LEVEL))


def _answers(project: Project, version: str, since: datetime | None) -> pa.Table:
    """The newest answers, each request once."""
    query = f"""
        SELECT * FROM (
          SELECT DISTINCT ON (asked) time, subset, prediction, probability, x_m,
            list_transform(inputs, lambda one: concat(one.name, one.sha256)) AS asked
          FROM answers WHERE model_version = $version AND ($since IS NULL OR time >= $since)
          ORDER BY asked, time DESC
        ) ORDER BY time DESC LIMIT {_MOST}
    """
    return pipeline.open_lake(project).sql(query, {"version": version, "since": since})


def _compared(project: Project, run_id: str, asked: pa.Table, tested: pa.Table) -> dict[str, Difference]:
    found = {}
    given = _given(project, tested["sample_id"].to_pylist())
    if given:
        found["given"] = of_categories(given, asked["subset"].to_pylist())
    places, told = places_of(project.mlflow_uri, run_id), [x for x in asked["x_m"].to_pylist() if x is not None]
    if places is not None and len(told) >= LEAST and len(places.tested) >= LEAST:
        now = np.array(told, dtype=np.float64)
        now /= np.maximum(np.linalg.norm(now, axis=1, keepdims=True), 1e-12)
        if now.shape[1] == places.tested.shape[1]:
            found["places"] = of_places(places.tested, now)
    before = [x for x in tested["prediction"].to_pylist() if x is not None]
    after = [json.loads(x) for x in asked["prediction"].to_pylist() if x is not None]
    if min(len(before), len(after)) >= LEAST:
        if pt.is_floating(tested.schema.field("prediction").type):
            found["answers"] = of_numbers(before, after)
        elif len({*map(_word, before)}) <= _KINDS:
            found["answers"] = of_categories([*map(_word, before)], [*map(_word, after)])
    sure = [[x for x in rows["probability"].to_pylist() if x is not None] for rows in (tested, asked)]
    if min(map(len, sure)) >= LEAST:
        found["probabilities"] = of_numbers(*sure)
    return found


def _given(project: Project, samples: list[str]) -> list[str]:
    """Of the test rows that are still in the dataset, which inputs each has."""
    columns = ", ".join(f"{m}_id IS NOT NULL AS {m}" for m in project.inputs)
    query = f"SELECT {columns} FROM dataset WHERE split = 'test' AND sample_id IN (SELECT unnest($samples))"
    rows = pipeline.open_lake(project).sql(query, {"samples": samples}).to_pylist()
    return [subset_name(m for m in project.inputs if row[m]) for row in rows]


def _word(answer: Any) -> str:
    return answer if isinstance(answer, str) else json.dumps(answer, sort_keys=True, ensure_ascii=False)
