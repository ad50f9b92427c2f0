"""What the commands answer on stdout, in words for a person; `--json` gives the same as one object."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from training.catalog import MODALITIES
from training.tuning_settings import as_overrides, as_yaml, in_words

if TYPE_CHECKING:  # the command line starts light
    from assets.explaining import Explained
    from orchestration.drift import Drift
    from orchestration.erasure import Erased
    from orchestration.feedback import Marked
    from orchestration.forecast import Forecast
    from orchestration.housekeeping import Collected
    from orchestration.inspection import Check, SourceCounts, Status
    from orchestration.run import Summary
    from orchestration.search import Found
    from orchestration.traced import Item, Traced
    from training.records import SiloReport, TuningReport

_BAR = 40  # characters of an accuracy of 1
_WIDTH = 18  # of the column of names
_SHOWN = 60  # characters of a text that was found
_KINDS = 6  # suffixes of a source that are named
_MAJORITY = "majority answer"
_RANKED = 10  # trials of a search for settings that are shown


def say_summary(summary: Summary) -> None:
    """The end of a run: what was made and what to do with it."""
    if summary.subsets:
        _say_subsets(summary)
    if summary.outputs:
        _say_outputs(summary.outputs)
    if summary.variants:
        _say_variants(summary)
    model = summary.model
    if model.version is None:
        if summary.dataset.fingerprint is not None:
            click.echo(f"\nDataset {summary.dataset.fingerprint} ({_rows(summary.dataset.rows)})")
        return
    worth = dict.fromkeys([*summary.findings, *summary.warnings])
    if worth:  # said hours ago, where training took so long
        click.echo("\nWorth a look:")
    for finding in worth:
        click.secho(f"  {finding}", fg="yellow")
    click.echo(f"\nModel {model.name} version {model.version} ({', '.join(model.aliases) or 'no alias'})")
    click.echo(f"  dataset {summary.dataset.fingerprint}, MLflow run {summary.mlflow_run_id}")
    inputs = max(summary.subsets, key=len).split("+")
    options = " ".join(f'--{name} "…"' if MODALITIES.load(name).is_text else f"--{name} FILE" for name in inputs)
    which = "" if "champion" in model.aliases else f" --version {model.version}"
    click.echo(f"  ask it:  triptych predict {summary.project}{which} {options}")


def say_tuned(report: TuningReport, project: str) -> None:
    """The end of a search for settings: what was found and how it is used."""
    click.echo(f"\n{report.words}")
    for trial in report.ranked[:_RANKED]:
        value = f"{trial.value:8.4g}" if trial.value is not None else " " * 8
        said = f"  ({trial.state}{trial.said and ': '}{trial.said})" if trial.state != "complete" or trial.said else ""
        click.echo(f"  trial {trial.number:<4} {value}  {in_words(trial.values)}{said}")
    if len(report.trials) > _RANKED:
        click.echo(f"  ... {len(report.trials) - _RANKED:,} more in MLflow, run {report.mlflow_run_id}")
    if report.importance:
        said = ", ".join(f"{name} {share:.2f}" for name, share in report.importance.items())
        click.echo(f"what matters: {said}")
    click.echo("\nfor the project file:\n")
    click.echo(textwrap.indent(as_yaml(report.settings), "  "))
    options = " ".join(f"--set {shlex.quote(override)}" for override in as_overrides(report.settings))
    click.echo(f"or for a run, whose model the gate judges:  triptych run {shlex.quote(project)} {options}")


def say_silo(report: SiloReport) -> None:
    """The end of a silo's part in a training."""
    spent = "" if report.epsilon is None else f", epsilon {report.epsilon:.2f} spent on them in all"
    click.echo(f"\nSilo {report.silo}: {report.rounds} rounds on {report.rows:,} training rows{spent}; {report.ended}")


def say_explained(explained: Explained) -> None:
    sure = "" if explained.probability is None else f", probability {explained.probability:.3g}"
    click.echo(f"{explained.prediction}  (version {explained.version}{sure})")
    for modality, how in explained.how.items():
        click.echo(f"  {modality}: {how}")
    click.echo(explained.picture)


def _say_variants(summary: Summary) -> None:
    """The champion and its variants, a line each, and below what is slower here."""
    click.echo("\nThe champion in other forms, on the same test rows")
    shown = [list(summary.variants[0]), *([str(cell) for cell in row.values()] for row in summary.variants)]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    for row in shown:
        click.echo("  " + "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
    for remark in summary.variant_remarks:
        click.secho(f"  {remark}", fg="yellow")


def _rows(splits: Mapping[str, int]) -> str:
    return ", ".join(f"{n:,} {split}" for split, n in splits.items())


def _say_subsets(summary: Summary) -> None:
    """The first metric of the output, on the same rows in every line; a share of the rows as a bar, too."""
    metric = summary.metric or "accuracy"
    everyone = int(summary.metrics["test/n"])
    partly = any(n < everyone for n in summary.subset_rows.values())
    missing = "; where a row has none of them, the majority answer counts" if partly else ""
    click.echo(f"\nTest {metric.replace('_', ' ')} by the inputs given, on the same {everyone:,} rows{missing}")
    figures = sorted(summary.subset_filled.items(), key=lambda pair: pair[1] or 0)
    if (usual := summary.metrics.get(f"test/majority_{metric}")) is not None:
        figures.insert(0, (_MAJORITY, usual))
    width = max(len(name) for name, _ in figures)
    for name, value in figures:
        n, own = summary.subset_rows.get(name, everyone), summary.subsets.get(name, value)
        if value is None or own is None:
            click.echo(f"  {name:<{width}}  no test row")
            continue
        bar = "█" * round(_BAR * value) if metric == "accuracy" else ""
        on_own = f"{own:.3f} on the {n:,} rows that have it" if n < everyone else ""
        click.echo(f"  {name:<{width}}  {value:6.3f}  " + (f"{bar:<{_BAR}}  {on_own}" if on_own else bar).rstrip())
    prefix = "test/contribution_"
    added = {name.removeprefix(prefix): by for name, by in summary.metrics.items() if name.startswith(prefix)}
    if usual is not None and len(added) > 1:
        said = ", ".join(f"{name} {by:+.3f}" for name, by in sorted(added.items(), key=lambda pair: -(pair[1] or 0)))
        click.echo(f"  added to the majority answer's {usual:.3f}, averaged over all orders: {said}")


def _say_outputs(outputs: Sequence[Mapping[str, Any]]) -> None:
    """Each of several answers, beside the majority's."""
    click.echo("\nEach output, on the test rows that have a label of it")
    width = max(len(output["metric"]) for output in outputs)
    for output in outputs:
        value, usual = ("  none" if output[x] is None else f"{output[x]:6.3f}" for x in ("value", "majority"))
        click.echo(
            f"  {output['metric'].replace('_', ' '):<{width}}  {value}  majority answer {usual}  n = {output['n']:,}"
        )


def say_check(check: Check) -> None:
    for name, source in check.sources.items():
        click.echo(f"{name:<{_WIDTH}} {source.listed:>9,} items, {source.refused:,} refused; {_decoded(source)}")
        if source.change is not None and source.change.words:
            click.echo(f"  since the last run: {source.change.words}")
            for what in ("changed", "vanished"):
                for place in getattr(source.change, f"{what}_items"):
                    click.echo(f"    {what}: {place}")
        for suffix, tried in source.suffixes.items():
            if tried.unreadable:
                of = f"{tried.unreadable:,} of {tried.decoded:,} decoded {suffix or 'items'} ({tried.items:,} in all)"
                click.secho(f"  cannot be read: {of}, such as {tried.example}", fg="yellow")
    _say_reasons("refused", check.refused, check.refused_examples)
    _say_reasons("unmatched", check.unmatched, check.unmatched_examples)
    if check.findings:
        click.echo("\nworth a look:")
    for finding in check.findings:
        click.secho(f"  {finding.message}", fg="yellow")
    if check.partition is None:
        click.echo(f"\nsamples: {_rows(dict(sorted(check.samples.items()))) if check.samples else 'none'}")
    _say_forecast(check.run, check.partition)


def _say_forecast(run: Forecast, partition: str | None) -> None:
    """What a run would make anew, table by table and reason by reason."""
    a_run = "a run" if partition is None else f"a run of partition {partition}"
    click.echo(f"\n{a_run} would make anew: " + ("" if run.work else "no rows"))
    width = max((_WIDTH, *map(len, run.work)))
    for table, work in run.work.items():
        for why, n in work.why.items():
            click.echo(f"  {table:<{width}} {n:>9,}  {why}")
    more = "" if partition is None else ": a run of a partition makes none"
    click.echo(f"  samples {run.samples}, dataset {run.dataset}{more}")
    for name, why in run.trainings.items():
        click.echo(f"  training of {name}: {why}")


def _decoded(source: SourceCounts) -> str:
    """What was looked at, and how the names end where they differ."""
    kinds = sorted(source.suffixes.items(), key=lambda kind: -kind[1].items)
    names = ", ".join(f"{tried.items:,} {suffix or 'without suffix'}" for suffix, tried in kinds[:_KINDS])
    more = f", {len(kinds) - _KINDS:,} other suffixes" if len(kinds) > _KINDS else ""
    decoded = f"decoded {sum(tried.decoded for _, tried in kinds):,} of {source.listed:,}"
    return f"{names}{more}; {decoded}" if len(kinds) > 1 else decoded


def said(row: Mapping[str, Any]) -> str:
    """An answer on one line; several as NAME: ANSWER each. Nothing where there is none, or it was withheld."""
    prediction = row["prediction"]
    if isinstance(prediction, Mapping):
        return ", ".join(f"{name}: {_words(value)}" for name, value in prediction.items())
    return _words(prediction)


def _words(prediction: Any) -> str:
    if isinstance(prediction, list):
        return "; ".join(map(str, prediction))
    return "" if prediction is None else str(prediction)


def say_marked(marked: Marked) -> None:
    told = "" if marked.answer is None else f": {marked.answer}"
    who = "" if marked.by is None else f" (by {marked.by})"
    click.echo(f"answer {marked.answer_id} is {marked.verdict}{told}{who}")


def say_found(found: Found) -> None:
    """The samples, the nearest first, each with its items and where they lie."""
    for hit in found.hits:
        click.echo(f"{hit.similarity:7.4f}  {hit.sample_id}")
        for item in hit.items:
            where = item.uri + (f": {item.member}" if item.member else "") + (f" line {item.row}" if item.row else "")
            where += "" if item.place is None else f", {MODALITIES.load(item.modality)().where(item.place)}"
            words = "" if item.text is None else f"  {' '.join(item.text.split())[:_SHOWN]}"
            click.echo(f"           {item.modality:<8} {item.source}  {where}{words}")
    if found.unreadable:
        click.secho(f"{found.unreadable:,} contents are not searched: they cannot be read", fg="yellow", err=True)
    searched = f"{', '.join(found.found)}; placed {found.placed:,} contents, reused {found.reused:,}"
    click.echo(f"({found.project} version {found.model_version}, searched {searched})", err=True)


def say_drift(told: Drift) -> None:
    click.echo(f"{told.answers:,} answers of version {told.version} since {told.since}, beside {told.rows:,} test rows")
    if not told.found:
        click.echo("  too few to tell")
    for name, line in zip(told.found, told.words, strict=True):
        is_other = name in told.differs
        click.secho(f"  {'differs' if is_other else 'as before':<9}  {line}", fg="yellow" if is_other else None)


def say_traced(traced: Traced) -> None:
    """From the model down to the files, or from an item up."""
    click.echo(f"{traced.kind} {traced.id}")
    if traced.answer is not None:
        said = ", ".join(f"{name} {value}" for name, value in traced.answer.items() if name not in ("inputs", "subset"))
        click.echo(f"  of {traced.answer['subset']}: {said}")
    if (model := traced.model) is not None:
        names = f" ({', '.join(model.aliases)})" if model.aliases else ""
        click.echo(f"  model    version {model.version}{names}, MLflow run {model.run_id or 'unknown'}")
    if (snapshot := traced.snapshot) is not None:
        tables = ", ".join(f"{name} {version}" for name, version in sorted(snapshot.tables.items()))
        click.echo(f"  dataset  {snapshot.fingerprint}" + (f", made {snapshot.time}, of {tables}" if tables else ""))
    if traced.sample is not None:
        click.echo(f"  sample   {traced.sample['split']}, label {traced.sample.get('label')}")
    for item in traced.items:
        _say_item(item)
    for near in traced.nearest:
        shown = "; ".join(" ".join(words.split())[:_SHOWN] for words in near.given)
        click.echo(f"  nearest  {near.similarity:7.4f}  {near.sample_id}, label {near.label}: {shown}")
    if traced.nearest:
        click.echo(f"           (training rows, by {traced.nearest_by})")
    for seen in traced.seen:
        splits = ", ".join(f"{split}: {', '.join(names)}" for split, names in seen.samples.items())
        models = f"; model version {', '.join(seen.models)}" if seen.models else ""
        runs = f"; runs {', '.join(f'{role} {run}' for run, role in seen.runs.items())}" if seen.runs else ""
        click.echo(f"  seen by  {seen.snapshot} ({seen.time})  {splits or 'in no sample'}{models}{runs}")
    for remark in traced.remarks:
        click.secho(f"  {remark}", fg="yellow", err=True)


def _say_item(item: Item) -> None:
    where = item.uri + (f": {item.member}" if item.member else "") + (f" line {item.row}" if item.row else "")
    where += "" if item.part is None else f", {item.part}"
    click.echo(f"  {item.modality:<8} {item.source}  {where}  ({item.now})")
    click.echo(f"           item {item.item_id}, content {item.id}")
    if item.text is not None:
        click.echo(f"           {' '.join(item.text.split())[:_SHOWN]}")


def _say_reasons(title: str, reasons: Mapping[str, int], examples: list[str]) -> None:
    if reasons:
        click.echo(f"\n{title}: " + ", ".join(f"{n:,} {reason}" for reason, n in reasons.items()))
        for message in examples:
            click.echo(f"  {message}")


def say_status(status: Status) -> None:
    click.echo(f"{status.project}  {status.file}\nlake  {status.lake}\n")
    for name, table in status.tables.items():
        click.echo(f"  {name:<{_WIDTH}} {table.rows:>10,} rows   version {table.version}")
    click.echo("\nno model yet" if not status.models else "")
    for model in status.models:
        _say_model(model)


def _say_model(model: Mapping[str, Any]) -> None:
    worth = "" if model["value"] is None else f"test {model['metric'].replace('_', ' ')} {model['value']:.4f}"
    usual = "" if model["majority"] is None else f", majority answer {model['majority']:.4f}"
    beside = f" (n = {model['n']:,}{usual})"
    click.echo(f"  version {model['version']:<4} {', '.join(model['aliases']):<22} {worth}{beside if worth else ''}")
    if model["unused_fusion"]:
        click.secho(f"    ! {model['unused_fusion']}", fg="yellow")
    for reason in model["reasons"]:
        click.secho(f"    {reason}", dim=True)


def say_collected(collected: Collected) -> None:
    _say_removed(collected.removed, collected.dry_run)
    for name, files in collected.compacted.items():
        click.echo(f"  {name:<{_WIDTH}} {files:>9,} files compacted")


def say_erased(erased: Erased, purge: bool) -> None:
    _say_removed(erased.removed, erased.dry_run)
    for model in erased.models:
        click.echo(f"  made from it: version {model.version}, MLflow run {model.run_id}")
    for run in erased.runs:
        click.echo(f"  made from it: {run.role}, MLflow run {run.run_id}")
    if erased.history:
        click.echo(f"  may show it:  Dagster's history of {erased.project} ({erased.history:,} runs)")
    if (proof := erased.proof) is not None:
        where = f"{proof.files:,} files ({proof.bytes / 1e6:,.1f} MB)"
        click.echo(f"  looked for its bytes, texts and hashes in {where}: " + ("found" if proof.found else "nowhere"))
        for found in proof.found:
            click.secho(f"  still in:     {found.file}: {found.what}", fg="yellow")
        for words in proof.not_searched:
            click.secho(f"  not searched: {words}", fg="yellow")
    click.echo("  The source is not touched: what is still there comes back with the next run.")
    if erased.retrained is not None:
        click.echo(f"  trained without it: version {erased.retrained} ({', '.join(erased.aliases) or 'no alias'})")
    if (erased.models or erased.runs or erased.history) and (erased.dry_run or not purge):
        click.echo("  --purge-artifacts deletes these models, runs and this history")


def _say_removed(removed: Mapping[str, int], dry_run: bool) -> None:
    click.echo("would be removed:" if dry_run else "removed:")
    for name, rows in removed.items():
        if rows:
            click.echo(f"  {name:<{_WIDTH}} {rows:>9,} rows")
    if not any(removed.values()):
        click.echo("  nothing")
