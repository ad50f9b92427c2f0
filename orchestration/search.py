"""Search over the lake: the samples whose contents a model of output `embedding` places nearest to what is asked.

Contents are placed by the same code that answers, once for each model and content, into the table `embeddings`.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow as pa

from assets import pipeline
from assets.contents import portions
from assets.gate import raw_value
from assets.lake import Lake
from assets.parts import parts_of, read_contents
from assets.settings import Project
from orchestration.predict import check_inputs, raw_rows, raw_schema, refusal
from training.schema import EMBEDDINGS, MODALITIES, fingerprint

_AT_ONCE = 10_000  # contents that one process of the model places; then they are safe
_ROWS = 256  # that are read at once, if their media are small
# What stands in samples, one row an item; of several of a modality in their order.
_ITEMS = " UNION ALL ".join(
    f"SELECT sample_id, '{m}' AS modality, {m}_id AS id, {m}_item AS item_id, 0 AS place, {m}_views[1] AS view "
    f"FROM samples WHERE {m}_id IS NOT NULL UNION ALL "
    f"SELECT sample_id, '{m}', more.id, more.item, place, views[place + 1] FROM (SELECT sample_id, {m}_views AS views, "
    f"unnest({m}_more) AS more, generate_subscripts({m}_more, 1) AS place FROM samples)"
    for m in MODALITIES
)


@dataclass(frozen=True)
class Place:
    """An item of a sample, and where it lies."""

    modality: str
    source: str
    uri: str  # file or archive, or table for text
    member: str | None  # path within the archive
    row: int | None  # line or row of the table
    place: dict[str, float] | None  # of a part, where in its item it lies (`Modality.place`); null: it is the whole
    text: str | None  # of a text


@dataclass(frozen=True)
class Hit:
    """A sample, and the one of its contents that lies nearest to what is asked."""

    sample_id: str
    similarity: float  # cosine
    modality: str  # of that content
    items: list[Place]  # all of the sample's


@dataclass(frozen=True)
class Found:
    """What `search` found, the nearest first."""

    project: str
    model_version: str
    asked: list[str]  # modalities
    found: list[str]  # modalities that were searched
    placed: int  # contents that the model was shown now ...
    reused: int  # ... and those that it had placed before
    unreadable: int  # contents that are not searched: they cannot be read now, or the model refused them
    hits: list[Hit]


def search(
    project: Project,
    inputs: Mapping[str, Any],
    k: int = 10,
    find: Sequence[str] = (),
    version: str = "champion",
    say: Callable[[str], None] = lambda words: None,
) -> Found:
    """The samples of the lake that lie nearest to one row of inputs.

    Args:
        inputs: modality -> text, or a file or its bytes.
        find: the modalities that are searched; none: those that are not asked with, which is what the model was trained
            for and its recall is measured by.
        say: is told what takes long.

    Raises:
        ValueError: the model gives no embeddings, there is no such version, nothing is left to be searched, or what is
            asked cannot be read.
    """
    from training import model_registry

    asked = [m for m in MODALITIES if inputs.get(m)]
    if not project.make_output().is_embedding:
        kind = project.model.output.kind
        raise ValueError(f"the output of {project.name} is {kind}: search needs a model with `output: embedding`")
    check_inputs(project, [inputs])
    wanted = [m for m in project.modalities if (m in find if find else m not in asked)]
    if unknown := sorted(set(find) - set(project.modalities)):
        raise ValueError(f"{', '.join(unknown)} cannot be found: {project.name} has {', '.join(project.modalities)}")
    if not wanted:
        raise ValueError(f"all of {', '.join(asked)} are given, so nothing is left to be found: say `find` as well")
    version = model_registry.find_version(project.mlflow_uri, project.name, version)
    tags = model_registry.version_tags(project.mlflow_uri, project.name, version)
    keys = {m: embedding_fingerprint(tags, m) for m in wanted}
    lake = pipeline.open_lake(project)
    missing = _missing(lake, keys)
    if missing.num_rows:
        say(f"{missing.num_rows:,} contents are placed first, once for version {version}")
    model = model_registry.local_model(project.mlflow_uri, project.name, version, project.folder / "cache")
    query: list[float] | None = None
    placed = 0
    for start in range(0, max(1, missing.num_rows), _AT_ONCE):
        part = missing.slice(start, _AT_ONCE)
        answers, read = _answers(model, project, [inputs] if query is None else [], part)
        if query is None:
            first, answers = answers[0], answers[1:]
            if first["prediction"] is None:
                raise ValueError(refusal([inputs], 1, first["error"] or "the model gives no embedding of it"))
            query = first["prediction"]
        placed += len(read)
        rows = [
            {"id": row["id"], "modality": row["modality"], "fingerprint": keys[row["modality"]]}
            | {"embedding": answer["prediction"]}
            for row, answer in zip(read, answers, strict=True)
        ]
        lake.append("embeddings", [pa.Table.from_pylist(rows, EMBEDDINGS)])
    assert query is not None
    there, readable = _counts(lake, keys)
    return Found(
        project=project.name,
        model_version=version,
        asked=asked,
        found=wanted,
        placed=placed,
        reused=there - placed,
        unreadable=missing.num_rows - placed + there - readable,
        hits=_nearest(lake, keys, query, k),
    )


def embedding_fingerprint(tags: Mapping[str, str], modality: str) -> str:
    """Names the places that a version gives contents of a modality.

    Args:
        tags: of the version, which say what training made it.
    """
    return fingerprint("embedding", tags.get("training_fingerprint"), modality)


def _of(keys: Mapping[str, str]) -> str:
    """The condition that a row of embeddings is of one of the modalities and of the version."""
    return " OR ".join(f"(modality = '{m}' AND fingerprint = '{key}')" for m, key in keys.items())


def _missing(lake: Lake, keys: Mapping[str, str]) -> pa.Table:
    """Manifest rows of the contents that have no place yet, each once, with `id` and, of views, `view`."""
    lake.require("samples")
    return lake.sql(
        f"""
        WITH wanted AS (
          SELECT modality, id, min(item_id) AS item_id, min(view) AS view FROM ({_ITEMS}) GROUP BY ALL
        ), placed AS (SELECT DISTINCT modality, id FROM embeddings WHERE {_of(keys)})
        SELECT w.id, w.view, m.*
        FROM wanted w ANTI JOIN placed p USING (modality, id) JOIN manifest m USING (item_id, modality)
        WHERE list_contains($found, w.modality) ORDER BY w.modality, w.id
        """,
        {"found": list(keys)},
    )


def _answers(
    model: Path, project: Project, asked: Sequence[Mapping[str, Any]], contents: pa.Table
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What the model says of the rows that are asked and then of each content by itself; and which contents could be
    read."""
    from training.score import answer_rows

    read: list[dict[str, Any]] = []
    schema, parts = raw_schema(), parts_of(pipeline.open_lake(project), contents["id"].to_pylist())

    def raw() -> Iterator[pa.RecordBatch]:
        ids, sizes = contents["id"].to_pylist(), contents["size"].to_pylist()
        sizes = [parts[name].size if name in parts else size for name, size in zip(ids, sizes, strict=True)]
        for part in portions(contents, sizes, _ROWS):
            columns = [part[name].to_pylist() for name in ("item_id", "id", "modality", "view")]
            named = list(zip(*columns, strict=True))
            wanted = [(item, content) for item, content, *_ in named]
            data = read_contents(part, wanted, parts, project.make_sources(), project.limits)
            there = [(m, content, view) for _, content, m, view in named if data[content] is not None]
            read.extend({"id": content, "modality": modality} for modality, content, _ in there)
            rows = [
                {m: raw_value(m, data[content]), f"{m}_views": None if view is None else [view]}
                for m, content, view in there
            ]
            yield pa.RecordBatch.from_pylist(rows, schema)

    batches = itertools.chain(raw_rows(asked, ()), raw())
    answers = answer_rows(model, pa.RecordBatchReader.from_batches(schema, batches))
    if not pa.types.is_list(kind := answers.schema.field("prediction").type):
        raise ValueError(f"this version answers with {kind}, not with embeddings: train the model of this project file")
    return answers.to_pylist(), read


def _counts(lake: Lake, keys: Mapping[str, str]) -> tuple[int, int]:
    """Contents of samples that have a row in `embeddings`, and those that have a place."""
    (row,) = lake.sql(
        f"""
        SELECT count(DISTINCT (e.modality, e.id)) AS rows,
          count(DISTINCT (e.modality, e.id)) FILTER (embedding IS NOT NULL) AS placed
        FROM embeddings e SEMI JOIN ({_ITEMS}) s USING (modality, id) WHERE {_of(keys)}
        """
    ).to_pylist()
    return row["rows"], row["placed"]


def _nearest(lake: Lake, keys: Mapping[str, str], query: Sequence[float], k: int) -> list[Hit]:
    """The k samples with the nearest contents, and all their items."""
    rows = lake.sql(
        f"""
        WITH items AS ({_ITEMS}), near AS (
          SELECT DISTINCT ON (modality, id) modality, id,
            list_cosine_similarity(embedding, $query::FLOAT[]) AS similarity
          FROM embeddings WHERE embedding IS NOT NULL AND ({_of(keys)})
        ), best AS (
          SELECT sample_id, max(similarity) AS similarity, arg_max(modality, similarity) AS nearest
          FROM items JOIN near USING (modality, id) GROUP BY sample_id
          ORDER BY similarity DESC, sample_id LIMIT $k
        )
        SELECT sample_id, similarity, nearest, modality, items.id, source, uri, member, "row", "text"
        FROM best JOIN items USING (sample_id) JOIN manifest m USING (item_id, modality)
        ORDER BY similarity DESC, sample_id, place
        """,
        {"query": list(query), "k": k},
    ).to_pylist()
    hits, parts = [], parts_of(lake, (row["id"] for row in rows))
    for row in rows:
        row["place"] = parts[row["id"]].place if row["id"] in parts else None
    for (sample, similarity, nearest), items in itertools.groupby(
        rows, key=lambda row: (row["sample_id"], row["similarity"], row["nearest"])
    ):
        places = [Place(**{field.name: item[field.name] for field in fields(Place)}) for item in items]
        places.sort(key=lambda place: MODALITIES.index(place.modality))
        hits.append(Hit(sample, round(similarity, 4), nearest, places))
    return hits
