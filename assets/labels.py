"""What is odd about the labels of samples, told before a model is trained on them."""

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal

import pyarrow as pa
import pyarrow.compute as pc

from assets.findings import SHOWN, Finding, counted, listed, quoted
from assets.lake import open_duckdb
from assets.leakage import INPUTS
from assets.settings import Project
from training.outputs.base import Output
from training.schema import SPLITS
from training.settings import ModelSettings

_NUMBER = re.compile(r"[+-]?\d+([.,]\d+)?")
_JOINT = re.compile(r"(?<=[^\W\d])[\s_-]+(?=\w)|(?<=\w)[\s_-]+(?=[^\W\d])")  # not between digits: 1-2 is not 12


def label_findings(samples: pa.Table, project: Project) -> list[Finding]:
    """Of samples (training.schema.SAMPLES): missing, doubtful, contradicting, rare and unseen labels. What only makes
    sense of classes is told of classes only (`Output.is_class`)."""
    if not project.align.labels:
        return []
    found: list[Finding] = []
    for column, output, part in by_column(samples, project.make_output()):
        told = _findings(part, output, project.model, column or project.align.labels[0])
        found += _named(told, column)
    return found


def by_column(samples: pa.Table, output: Output) -> list[tuple[str, Output, pa.Table]]:
    """The samples with the labels of each column that is answered, and the output that reads them; the name is empty
    where there is but one."""
    at = samples.column_names.index("label")
    return [
        (column, member, samples.set_column(at, "label", pa.array(labels, pa.string())))
        for column, (member, labels) in output.columns(samples["label"].to_pylist()).items()
    ]


def _named(findings: list[Finding], column: str) -> list[Finding]:
    return [replace(f, message=f"{column}: {f.message}") for f in findings] if column else findings


def _findings(samples: pa.Table, output: Output, settings: ModelSettings, column: str) -> list[Finding]:
    counts = Counter(samples["label"].drop_null().to_pylist())
    found = [_unlabelled(samples, column)]
    doubts = {label: doubt for label in counts if (doubt := output.doubt(label, settings)) is not None}
    if doubts:
        rows = sum(counts[label] for label in doubts)
        said = f"{counted(len(doubts), 'label')} of {counted(rows, 'row')} can hardly be an answer"
        shown = "; ".join(f"{quoted(label)} {doubt}" for label, doubt in list(doubts.items())[:SHOWN])
        found.append(Finding("doubtful_label", f"{said}: {shown}"))
    if output.is_class(counts):
        labelled = samples.filter(pc.is_valid(samples["label"]))
        found += [_alike(counts), _rare(counts), _unseen(labelled), _uneven(counts)]
        found.append(_conflicting(labelled))
    return [finding for finding in found if finding is not None]


def _unlabelled(samples: pa.Table, column: str) -> Finding | None:
    without = samples.filter(pc.is_null(samples["label"]))["sample_id"].to_pylist()
    if not without:
        return None
    said = f"{len(without):,} of {samples.num_rows:,} samples have no label (column {column!r})"
    return Finding("unlabelled", f"{said}, such as {listed(without)}")


def _spelling(label: str) -> str:
    """The same for labels that differ as slips do: in case, width, space, punctuation, or as 3.0 does from 3."""
    plain = unicodedata.normalize("NFKC", label).casefold()
    plain = "".join(c for c in plain if unicodedata.category(c) not in ("Cf", "Cc") or c.isspace())
    plain = _JOINT.sub("", plain.strip(" .,;:!?\"'"))
    if _NUMBER.fullmatch(plain):
        return f"{Decimal(plain.replace(',', '.')).normalize():f}"
    return " ".join(plain.split())


def _alike(counts: Mapping[str, int]) -> Finding | None:
    spellings: dict[str, list[str]] = {}
    for label in sorted(counts, key=lambda label: (-counts[label], label)):
        spellings.setdefault(_spelling(label), []).append(label)
    groups = [labels for labels in spellings.values() if len(labels) > 1]
    if not groups:
        return None
    shown = "; ".join(
        " and ".join(f"{quoted(label)} ({counted(counts[label], 'row')})" for label in labels[:SHOWN])
        for labels in groups[:SHOWN]
    )
    more = f"; and {len(groups) - SHOWN:,} more" if len(groups) > SHOWN else ""
    return Finding("labels_alike", f"labels that may mean one class are several: {shown}{more}")


def _rare(counts: Mapping[str, int]) -> Finding | None:
    rare = sorted(label for label, n in counts.items() if n == 1)
    if not rare:
        return None
    return Finding("rare_class", f"{counted(len(rare), 'class')} of {len(counts):,} with a single row: {listed(rare)}")


def _unseen(samples: pa.Table) -> Finding | None:
    trained = set(samples.filter(pc.equal(samples["split"], "train"))["label"].to_pylist())
    others = samples.filter(pc.is_in(samples["split"], pa.array(SPLITS[1:])))["label"].to_pylist()
    unseen = Counter(label for label in others if label not in trained)
    if not unseen:
        return None
    said = f"{counted(len(unseen), 'label')} of validation or test that training never sees"
    return Finding("unseen_label", f"{said} ({counted(unseen.total(), 'row')}, never right): {listed(sorted(unseen))}")


def _uneven(counts: Counter[str]) -> Finding | None:
    """Classes of which there is but one, or nearly as many as rows."""
    rows = counts.total()
    if len(counts) == 1:
        return Finding("one_class", f"all {rows:,} labels are {listed(list(counts))}: there is nothing to learn")
    if 2 * len(counts) > rows:
        advice = "is this the column with the answers (align.label), or are they texts (model.output: text)?"
        return Finding("many_classes", f"{len(counts):,} classes in {counted(rows, 'row')}: {advice}")
    return None


def _conflicting(samples: pa.Table) -> Finding | None:
    """Keys of several items (`KEY#HASH`, as the join by key names such samples) that have several labels."""
    with open_duckdb() as connection:
        connection.register("samples", samples)
        rows = connection.sql(
            """
            SELECT regexp_replace(sample_id, '#[0-9a-f]{16}$', '') AS key, list(DISTINCT label ORDER BY label)
            FROM samples WHERE label IS NOT NULL GROUP BY 1 HAVING count(DISTINCT label) > 1 ORDER BY 1
            """
        ).fetchall()
    if not rows:
        return None
    shown = "; ".join(f"{quoted(key)}: {listed(labels)}" for key, labels in rows[:SHOWN])
    return Finding("conflicting_labels", f"{counted(len(rows), 'key')} of several items with several labels: {shown}")


def disputed_inputs(samples: pa.Table, project: Project) -> list[Finding]:
    """Samples whose inputs are all the same and whose labels are not: no model can be right about all of them."""
    parts = by_column(samples, project.make_output())
    return [f for column, output, part in parts for f in _named(_disputed(part, output), column)]


def _disputed(samples: pa.Table, output: Output) -> list[Finding]:
    if not output.is_class(Counter(samples["label"].drop_null().to_pylist())):
        return []
    with open_duckdb() as connection:
        connection.register("samples", samples)
        rows = connection.sql(
            f"""
            SELECT count(*) AS n, list(DISTINCT label ORDER BY label) AS labels, list(sample_id ORDER BY sample_id)
            FROM samples WHERE label IS NOT NULL AND {INPUTS} IS NOT NULL
            GROUP BY {INPUTS} HAVING count(DISTINCT label) > 1 ORDER BY n DESC, min(sample_id)
            """
        ).fetchall()
    if not rows:
        return []
    said = f"{counted(sum(n for n, _, _ in rows), 'sample')} have inputs that stand under several labels"
    shown = "; ".join(f"{listed(ids)}: {listed(labels)}" for _, labels, ids in rows[:SHOWN])
    return [Finding("disputed_inputs", f"{said} ({counted(len(rows), 'input')}): {shown}")]


def label_rows(samples: pa.Table, output: Output) -> pa.Table:
    """Label and split of each sample; where several columns are answered, of each label, with its column before it."""
    parts = []
    for column, member, part in by_column(samples.select(["label", "split"]), output):
        labels = pa.array([label and member.label_words(label) for label in part["label"].to_pylist()], pa.string())
        named = pc.binary_join_element_wise(column, labels, ": ") if column else labels
        part = part.set_column(0, "label", named)
        parts.append(part.filter(pc.is_valid(named)) if column else part)
    return pa.concat_tables(parts)


def label_table(samples: pa.Table, most: int = 20) -> pa.Table:
    """The most frequent labels (of `label_rows`), with their rows in each split."""
    splits = ", ".join(f"count_if(split = '{split}') AS {split}" for split in SPLITS)
    with open_duckdb() as connection:
        connection.register("samples", samples)
        return connection.sql(
            f"SELECT label, count(*) AS rows, {splits} FROM samples WHERE label IS NOT NULL GROUP BY 1 "
            f"ORDER BY rows DESC, label LIMIT {most}"
        ).to_arrow_table()
