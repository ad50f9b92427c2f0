"""Variants of the champion at work: fetches what they answered, judges each beside the champion on the same test rows,
registers those that are not worse, writes down why.

A variant gets an alias of its own, `champion-int8`: the alias `champion` stays with the model that was trained, by
which the next challenger is judged; who wants the small one asks for it by name.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import dagster as dg
import pyarrow as pa

from assets import links, pipeline
from assets.evaluation import recorded_predictions
from assets.preview import markdown_table
from assets.settings import Project
from training.catalog import VARIANTS
from training.metrics import Metric
from training.records import Comparison, VariantReport
from training.schema import subset_name
from training.settings import PromotionSettings
from training.spec import FULL, VariantSpec, plan_variants

TABLE = "variants.json"  # in the champion's MLflow run


@dataclass(frozen=True, kw_only=True)
class VariantLine:
    """A variant beside the champion that it was made of."""

    report: VariantReport
    beside: Comparison | None = None  # the variant (a) and the champion (b); None: it is the champion
    passed: bool = True
    version: str | None = None  # in the registry; None: refused
    why: str = ""


def planned(project: Project) -> tuple[list[VariantSpec], str]:
    """What the champion's variants are made by, the champion first; where there are none, a sentence that says why."""
    from training import model_registry

    uri, name = project.mlflow_uri, project.name
    if (champion := model_registry.alias(uri, name, "champion")) is None:
        return [], "there is no champion yet, so nothing to make variants of"
    tags = model_registry.version_tags(uri, name, champion)
    if of := tags.get("variant_of"):
        return [], f"the champion, version {champion}, is itself a variant of version {of}"
    dataset = pipeline.present_snapshot(pipeline.open_lake(project)).fingerprint
    if tags.get("dataset_fingerprint") != dataset:
        return [], f"the champion, version {champion}, was trained on another dataset than the present one"
    training = tags.get("training_fingerprint", "")
    return plan_variants(project.variants, champion, training, dataset, project.inputs), ""


def judge(project: Project, specs: Sequence[VariantSpec], reports: dict[str, VariantReport]) -> list[VariantLine]:
    """Each variant beside the version that it was made of; those that are not shown to be worse than that by more than
    the margin become versions. Judged anew each time, since the rule may be another: nothing is computed for it."""
    from training.bootstrap import compare

    output, full = project.make_output(), subset_name(project.inputs)
    metric, rule = output.metric(project.promotion.metric), project.promotion
    tables = {s.name: recorded_predictions(project, reports[s.name].mlflow_run_id, full) for s in specs}
    said = {name: _by_sample(table) for name, table in tables.items()}
    labels = dict(zip(*(tables[FULL][column].to_pylist() for column in ("sample_id", "label")), strict=True))
    lines = [VariantLine(report=reports[FULL], version=specs[0].of)]
    for spec in specs[1:]:
        answers = [[said[name][sample] for sample in labels] for name in (spec.name, FULL)]
        beside = compare(metric, list(labels.values()), answers[0], answers[1], rule.confidence)
        passed, why = verdict(spec.name, beside, metric, rule)
        line = VariantLine(report=reports[spec.name], beside=beside, passed=passed, why=why)
        lines.append(_registered(project, spec, line))
    return lines


def _by_sample(table: pa.Table) -> dict[str, Any]:
    from training.evaluate import answers_by_sample

    return answers_by_sample(table)


def verdict(name: str, beside: Comparison, metric: Metric, rule: PromotionSettings) -> tuple[bool, str]:
    """Whether a variant passes: it is not shown to be worse than the full model by more than the margin. Less is asked
    than of a challenger, who takes another's place: a variant takes nobody's, and can hardly be better."""
    passed = beside.high >= -rule.margin
    word = "not shown to be worse" if passed else "worse"
    by = f" by more than {rule.margin:g} (promotion.margin)" if rule.margin else ""
    gain = "difference" if metric.higher_is_better else "less by"
    return passed, (
        f"{name} is {word} than the full model{by}: {metric.words} {beside.a:.4f} against {beside.b:.4f} on the same "
        f"{beside.rows:,} test rows, {gain} {beside.difference:+.4f} [{beside.low:+.4f}, {beside.high:+.4f}] "
        f"({rule.confidence:.0%} one-sided paired bootstrap)"
    )


def alias_of(name: str) -> str:
    """Of a variant of the champion, in signs that MLflow allows."""
    return "champion-" + re.sub(r"[^\w-]", "_", name)


def _registered(project: Project, spec: VariantSpec, line: VariantLine) -> VariantLine:
    """With the version that it is, if it passed. Its alias goes to it, and from it where it is refused by now; an older
    one that passed keeps it."""
    from training import model_registry

    uri, name, alias = project.mlflow_uri, project.name, alias_of(spec.name)
    run_id, verdict = line.report.mlflow_run_id, {"gate_reasons": json.dumps([line.why])}
    if not line.passed:
        held = model_registry.alias(uri, name, alias)
        if held is not None and model_registry.version_run(uri, name, held) == run_id:
            model_registry.tag_version(uri, name, held, verdict)
            model_registry.drop_alias(uri, name, alias)
        return line
    about = f"Variant `{spec.name}` of version {spec.of}, made without training.\n\n{line.why}"
    version = model_registry.register_variant(uri, name, run_id, about)
    model_registry.tag_version(uri, name, version, verdict)
    model_registry.set_alias(uri, name, alias, version)
    return replace(line, version=version)


def materialized(project: Project, lines: Sequence[VariantLine], made: int) -> dg.MaterializeResult:
    """Args: `made` are those that were made now."""
    from training.model_registry import version_run
    from training.runs import write_json

    metric = project.make_output().metric(project.promotion.metric)
    rows = table_rows(lines, metric)
    run_id, full = version_run(project.mlflow_uri, project.name, lines[0].report.of), lines[0].report
    columns = list(rows[0])
    write_json(
        project.mlflow_uri, run_id, TABLE, {"columns": columns, "data": [[row[c] for c in columns] for row in rows]}
    )
    passed = [line.report.name for line in lines[1:] if line.passed]
    refused = [line.report.name for line in lines[1:] if not line.passed]
    said = f"of version {full.of}: {', '.join(passed) or 'none'} registered"
    said += f"; refused {', '.join(refused)}" if refused else ""
    plotted: dict[str, float] = {}
    for line in lines:
        report = line.report
        figures = {"size": report.size, "milliseconds": report.milliseconds, "rows_per_second": report.rows_per_second}
        plotted |= {f"{name}/{report.name}": value for name, value in figures.items()}
    return dg.MaterializeResult(
        metadata={
            "summary": f"{said} ({made:,} made now)" if made else f"{said} (as before)",
            "mlflow": dg.MetadataValue.url(links.mlflow_run(project, run_id)),
            "table": markdown_table(pa.Table.from_pylist(rows)),
            "rows": rows,
            "remarks": remarks(lines),
            "versions": {line.report.name: line.version for line in lines[1:] if line.version is not None},
            "why": [line.why for line in lines[1:]],
            "made": made,
            **plotted,
        }
    )


def table_rows(lines: Sequence[VariantLine], metric: Metric) -> list[dict[str, Any]]:
    """As people read it: a row for the champion, then for each variant."""
    full, rows = lines[0].report, []
    for line in lines:
        report, beside = line.report, line.beside
        value, low, high = (report.metrics.get(name) for name in (metric.name, *_ends(report, metric)))
        interval = "" if low is None or high is None else f" [{low:.3f}, {high:.3f}]"
        difference = "" if beside is None else f"{beside.difference:+.4f} [{beside.low:+.4f}, {beside.high:+.4f}]"
        rows.append(
            {
                "variant": report.name,
                "size": f"{report.size / 1e6:.2f} MB ({report.size / full.size:.0%})",
                "one row": f"{report.milliseconds:.1f} ms, p95 {report.milliseconds_p95:.1f}",
                "rows/s": f"{report.rows_per_second:,.0f} ({report.rows_per_second / full.rows_per_second:.2f}x)",
                metric.words: "not measured" if value is None else f"{value:.3f}{interval}",
                "beside the full model": difference,
                "gate": "champion" if beside is None else "passed" if line.passed else "refused",
                "version": line.version or "",
            }
        )
    return rows


def _ends(report: VariantReport, metric: Metric) -> tuple[str, str]:
    """What the interval of a metric is called (`EvaluationRow.figures`)."""
    is_first = next(name for name in report.metrics if name != "n") == metric.name
    prefix = "" if is_first else f"{metric.name}_"
    return f"{prefix}low", f"{prefix}high"


def remarks(lines: Sequence[VariantLine]) -> list[str]:
    """What the figures say in plain words: what is slower than the full model, and where that was measured."""
    full, told = lines[0].report, []
    for line in lines[1:]:
        report = line.report
        slower = {
            "one row": report.milliseconds / full.milliseconds,
            "batches": full.rows_per_second / report.rows_per_second,
        }
        if found := [f"{what} {by:.1f} times as long" for what, by in slower.items() if by > _SLOWER]:
            told.append(f"{report.name} is slower than the full model here: {', '.join(found)} ({report.device})")
        if report.device != full.device:
            told.append(f"{report.name} was timed on {report.device}, the full model on {full.device}")
    return told


_SLOWER = 1.1


def check_variants(project: Project) -> None:
    """Raises ValueError where a variant's packages are not there."""
    for choice in project.variants:
        VARIANTS.make(choice).check_installed(choice.kind)
