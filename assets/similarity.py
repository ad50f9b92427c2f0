"""Samples whose text does not fit their picture or recording (`filters: {text+image: {kind: similarity}}`).

Where a model places a content is kept in the table `embeddings`, under the content and a fingerprint of model and
cleaning, and is computed once, of contents that stand in a sample with both. A picture is decoded whole for it: its
features may be of a smaller one. The threshold is decided in SQL, so moving it decodes nothing.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import pyarrow as pa

from assets.contents import portions
from assets.decoder import decode_each
from assets.featurizing import make_processor
from assets.findings import Finding, counted
from assets.joins.several import of_sample
from assets.lake import Lake, sql_string
from assets.parts import parts_of, read_contents
from assets.settings import Project
from training import two_towers
from training.filters.base import Filter
from training.media import MediaError
from training.processor import Processor, package_versions
from training.schema import EMBEDDINGS, MODALITIES, QUARANTINE, conform, fingerprint

_ROWS = 64  # contents that are read at once, if their media are small


class Pair(NamedTuple):
    """Two modalities that must fit, and how well."""

    modalities: tuple[str, ...]
    rule: Filter

    @property
    def name(self) -> str:
        return "+".join(self.modalities)

    def keys(self, processor: Processor) -> dict[str, str]:
        """Modality -> what its places are kept under."""
        model, packages = two_towers.identity(self.rule.options.model), package_versions(self.rule.packages)
        steps = {m: processor.clean_fingerprint(m) for m in self.modalities}
        return {m: fingerprint("similarity", model, m, step, self.rule.version, packages) for m, step in steps.items()}


def pairs_of(project: Project) -> list[Pair]:
    return [Pair(tuple(name.split("+")), rule) for name, rule in project.pair_filters.items()]


class Fitting(NamedTuple):
    """The samples that fit, and what became of the others."""

    samples: pa.Table
    refused: pa.Table  # rows of `quarantine` (stage filter) of the items that no sample has any more
    findings: list[Finding]
    unread: int  # contents that could not be read or decoded now, which the next run tries again


def apply_similarity(lake: Lake, project: Project, samples: pa.Table) -> Fitting:
    """Places what has no place yet, and drops the samples that do not fit."""
    refused, findings, unread = [QUARANTINE.empty_table()], [], 0
    for pair in pairs_of(project):
        keys = pair.keys(make_processor(project))
        if lacking := _place(lake, project, pair, keys, samples):
            said = f"{counted(lacking, 'content')} could not be read or decoded to tell whether {pair.name} is similar"
            findings.append(Finding("similarity", f"{said}: the next run tries again"))
            unread += lacking
        samples, rows, count = _decide(lake, pair, keys, samples)
        refused.append(rows)
        if count:
            said = f"{counted(count, 'sample')} dropped: {pair.name} is not similar ({pair.rule.expected()})"
            findings.append(Finding("similarity", said))
    return Fitting(samples, pa.concat_tables(refused), findings, unread)


def _judged(pair: Pair) -> str:
    """SQL over `aligned`, of the samples that have both: `sample_id`, and `value`, null where it is not known."""
    one, two = pair.modalities
    places = "(SELECT DISTINCT ON (id) id, embedding FROM embeddings WHERE modality = {!r} AND fingerprint = ${})"
    contents = "(SELECT sample_id, unnest(" + "{}" + ") AS id FROM aligned WHERE " + "{}_id IS NOT NULL)"
    return f"""
        SELECT sample_id, avg(list_cosine_similarity(p.embedding, q.embedding)) AS value
        FROM {contents.format(of_sample(one, "id"), one)} a JOIN {contents.format(of_sample(two, "id"), two)} b
          USING (sample_id)
        LEFT JOIN {places.format(one, one)} p ON p.id = a.id LEFT JOIN {places.format(two, two)} q ON q.id = b.id
        GROUP BY sample_id
    """


def _decide(lake: Lake, pair: Pair, keys: Mapping[str, str], samples: pa.Table) -> tuple[pa.Table, pa.Table, int]:
    """The samples that are kept, why the items of the others are not, and how many samples these are."""
    stands = " UNION ALL ".join(
        f"SELECT sample_id, unnest({of_sample(m, 'item')}) AS item_id FROM aligned WHERE {m}_item IS NOT NULL"
        for m in MODALITIES
    )
    named = f": similarity of {' and '.join(pair.modalities)} in its sample is "
    expected = f", expected {pair.rule.expected()} (filters.{pair.name}.similarity)"
    with lake.connect("embeddings manifest") as connection:
        connection.register("aligned", samples)
        connection.execute(f"CREATE TEMP TABLE judged AS {_judged(pair)}", keys)
        broken = f"SELECT * FROM judged WHERE NOT coalesce({pair.rule.keeps('value')}, false)"
        kept = connection.sql(
            f"SELECT a.* FROM aligned a ANTI JOIN ({broken}) b USING (sample_id) ORDER BY sample_id"
        ).to_arrow_table()
        rows = connection.sql(
            f"""
            WITH dropped AS ({broken}), stands AS ({stands}), gone AS (
              SELECT item_id, max(value) AS value FROM stands LEFT JOIN dropped USING (sample_id)
              GROUP BY 1 HAVING bool_and(sample_id IN (SELECT sample_id FROM dropped))
            )
            SELECT 'filter' AS stage, 'quarantined' AS outcome, 'similarity' AS reason,
              concat(uri, '/' || member, ', row ' || "row", {sql_string(named)},
                coalesce({pair.rule.shown("value")}, 'unknown'), {sql_string(expected)}) AS message,
              m.item_id, source, modality, key, uri, member, "row", sha256, cut
            FROM gone JOIN manifest m USING (item_id) ORDER BY m.item_id
            """
        ).to_arrow_table()
    return conform(kept, samples.schema), conform(rows, QUARANTINE), samples.num_rows - kept.num_rows


def _place(lake: Lake, project: Project, pair: Pair, keys: Mapping[str, str], samples: pa.Table) -> int:
    """Places the contents that have no place, of samples with both modalities; returns how many could not be read."""
    both = " AND ".join(f"{m}_id IS NOT NULL" for m in pair.modalities)
    wanted = " UNION ".join(
        f"SELECT '{m}' AS modality, unnest({of_sample(m, 'id')}) AS id, unnest({of_sample(m, 'item')}) AS item_id, "
        f"${m} AS fingerprint FROM aligned WHERE {both}"
        for m in pair.modalities
    )
    with lake.connect("embeddings manifest") as connection:
        connection.register("aligned", samples)
        missing = connection.sql(
            f"""
            SELECT w.id, m.* FROM (
              SELECT modality, id, fingerprint, min(item_id) AS item_id FROM ({wanted}) GROUP BY ALL
            ) w ANTI JOIN embeddings e USING (modality, id, fingerprint) JOIN manifest m USING (item_id, modality)
            ORDER BY modality, uri, "offset", w.id
            """,
            params=keys,
        ).to_arrow_table()
    if not missing.num_rows:
        return 0
    model, lacking = two_towers.load(pair.rule.options.model, pair.modalities), missing.num_rows
    for rows in _placed(lake, project, model, missing):
        table = pa.Table.from_pylist([row | {"fingerprint": keys[row["modality"]]} for row in rows], EMBEDDINGS)
        lake.append("embeddings", [table])
        lacking -= table.num_rows
    return lacking


def _placed(
    lake: Lake, project: Project, model: two_towers.TwoTowers, missing: pa.Table
) -> Iterator[list[dict[str, Any]]]:
    """Rows of embeddings, a portion at a time; none of a content that cannot be read now."""
    processor, sources = make_processor(project), project.make_sources()
    parts = parts_of(lake, missing["id"].to_pylist())
    sizes = [parts[i].size if i in parts else size for i, size in _columns(missing, "id", "size")]
    for part in portions(missing, sizes, _ROWS):
        data = read_contents(part, _columns(part, "item_id", "id"), parts, sources, project.limits)
        rows: list[dict[str, Any]] = []
        for modality in dict.fromkeys(part["modality"].to_pylist()):
            ids = (i for i, of in _columns(part, "id", "modality") if of == modality)
            decoded = _decoded(processor, modality, {i: content for i in ids if (content := data[i]) is not None})
            placed = zip(decoded, model.place(modality, list(decoded.values())), strict=True)
            rows += [{"id": i, "modality": modality, "embedding": place} for i, place in placed]
        yield rows


def _decoded(processor: Processor, modality: str, data: Mapping[str, bytes]) -> dict[str, Any]:
    """The contents by id, whole; without those that cannot be decoded."""
    answers = decode_each(processor.modalities[modality], ((one, None) for one in data.values()), processor.limits)
    decoded: dict[str, Any] = {}
    for name, answer in zip(data, answers, strict=True):
        if not isinstance(answer, Exception):
            decoded[name] = answer
        elif not isinstance(answer, MediaError):
            raise answer
    return decoded


def _columns(rows: pa.Table, *names: str) -> list[tuple[Any, ...]]:
    return list(zip(*(rows[name].to_pylist() for name in names), strict=True))
