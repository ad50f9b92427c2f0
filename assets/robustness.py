"""How what a model is worth falls as one modality gets noisier, in the manner of MultiBench (Liang et al. 2021): test
rows are answered again from raw inputs, noise added to one modality of them at a time."""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from assets import pipeline
from assets.featurizing import make_processor
from assets.gate import look_into, run_version, write_raw
from assets.settings import Project
from training.media import MediaError
from training.records import Answer, NoiseCurve
from training.schema import RAW, subset_name

_BATCH = 16  # rows whose media are held at once


def noise_curves(project: Project, version: str, predictions: pa.Table) -> list[NoiseCurve]:
    """Of each modality with noise: the gate's metric on the rows that have it, level by level, from none on.

    Args:
        predictions: of the version with all inputs given, on the test rows that are to be asked again. They are what is
            said without noise.

    Raises:
        RuntimeError: the version cannot be asked.
    """
    from training.evaluate import judged_answers

    output, lake, samples = project.make_output(), pipeline.open_lake(project), predictions["sample_id"].to_pylist()
    kinds = {m: kind for m in project.inputs if (kind := project.features.modality(m)).noise_levels}
    with tempfile.TemporaryDirectory() as temporary:
        raw, rows, answers = (Path(temporary) / f"{name}.parquet" for name in ("raw", "rows", "answers"))
        asked = write_raw(
            lake, raw, "test", project.make_sources(), output.asked(project.inputs), project.limits, samples
        )
        blocks = [(m, level) for m, kind in kinds.items() for level in kind.noise_levels]
        numbers: list[list[int]] = []
        with pq.ParquetWriter(rows, RAW, compression="NONE") as writer:
            for modality, level in blocks:
                numbers.append([])
                for part, at in _noisy(project, raw, modality, level):
                    writer.write_table(part)
                    numbers[-1] += at
        if not any(numbers):
            return []
        run_version(project, version, rows, answers)  # once: loading it takes longest
        told, start = pq.read_table(answers), 0
    look = look_into(lake, project) if output.answers_with else None
    said: dict[str, list[pa.Table]] = {modality: [] for modality in kinds}
    for (modality, _), at in zip(blocks, numbers, strict=True):
        judged = judged_answers(asked.take(at), told.slice(start, len(at)), output, look)
        said[modality].append(judged.filter(pc.equal(judged["subset"], subset_name(project.inputs))))
        start += len(at)
    return [_curve(project, m, kinds[m], predictions, tables) for m, tables in said.items() if tables[0].num_rows]


def _noisy(project: Project, raw: Path, modality: str, level: float) -> Iterator[tuple[pa.Table, list[int]]]:
    """The raw rows that have a modality, each content of it with noise, and their numbers among all."""
    from training.seeding import generator

    kind, processor, number = project.features.modality(modality), make_processor(project), 0
    for batch in pq.ParquetFile(raw).iter_batches(_BATCH):
        changed, at = [], []
        for row in batch.to_pylist():
            if row[modality] is not None:
                random = generator(0, 0, f"{row['sample_id']} {modality} noise {level:g}")

                def noisy(value: Any, random: Any = random) -> Any:
                    data = value.encode() if isinstance(value, str) else value
                    try:
                        content = processor.decode(modality, data, to_cut=True)
                    except MediaError:  # the model refuses it as well
                        return value
                    content = kind.noisy(content, level, random)
                    return content.text if kind.is_text else kind.encode(content)

                further = [None if value is None else noisy(value) for value in row[f"{modality}_more"] or ()]
                changed.append({**row, modality: noisy(row[modality]), f"{modality}_more": further or None})
                at.append(number)
            number += 1
        yield pa.Table.from_pylist(changed, RAW), at


def _curve(project: Project, modality: str, kind: Any, predictions: pa.Table, noisy: Sequence[pa.Table]) -> NoiseCurve:
    metric = project.make_output().metric(project.promotion.metric)
    clean = predictions.filter(pc.is_in(predictions["sample_id"], noisy[0]["sample_id"].combine_chunks()))
    figures = []
    for table in (clean, *noisy):
        rows = table.to_pylist()
        figures.append(metric.figure([row["label"] for row in rows], list(map(Answer.from_row, rows))))
    return NoiseCurve(
        modality=modality, metric=metric.name, rows=clean.num_rows, noise=kind.noise_words,
        levels=list(kind.noise_levels), figures=figures,
    )  # fmt: skip
