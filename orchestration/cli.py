"""The command line: a thin face over the Dagster definitions that the web UI shows. ``triptych --help``"""

import json
import os
import shlex
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import click

from orchestration.usage import Group, input_options, json_option, say_or_dump, set_option, version_option
from training.catalog import MODALITIES
from training.credentials import mask
from training.views import Places, views

# Everything heavy is imported inside the command that needs it: `triptych --help` must answer at once.

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--debug", is_flag=True, help="Show tracebacks and all that Dagster logs.")
@click.version_option(package_name="triptych")
@click.pass_context
def main(context: click.Context, debug: bool) -> None:
    """Text, images and speech that lie apart, fused into one language model.

    PROJECT is a project file, its folder, or the name of a project that was run before. State lies under
    TRIPTYCH_HOME (default: .triptych in the current folder).
    """
    context.obj = {"debug": debug}
    os.environ.setdefault("MLFLOW_CONFIGURE_LOGGING", "false")  # what it says of its tables and migrations
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")


@main.command()
@click.argument("project", required=False)
@click.option("--select", "names", metavar="ASSETS", help="Only these assets: a,b or +a (with upstream) or a+.")
@click.option("--partition", metavar="KEY", help="Only this partition, or FIRST...LAST, of clean and feature tables.")
@set_option
@json_option
@click.pass_context
def run(
    context: click.Context,
    project: str | None,
    names: str | None,
    partition: str | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Materialize the project's graph; without PROJECT, the built-in example."""
    from orchestration.answers import say_summary
    from orchestration.console import quieten
    from orchestration.examples.layout import find_project
    from orchestration.project import load
    from orchestration.run import open_instance, run_job, summary

    quieten()
    path, overrides = find_project(project or "digits", overrides)
    settings = load(path, overrides)
    click.secho(f"Triptych · project {settings.name} · {settings.path}", bold=True, err=True)
    with open_instance(settings.home) as instance:
        result = run_job(settings, instance, names, overrides, context.obj["debug"], partition)
    say_or_dump(summary(settings, result), as_json, say_summary)


@main.command()
@click.argument("project")
@set_option
@json_option
@click.pass_context
def tune(context: click.Context, project: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Search for better settings, as `tuning` of the project file says; killed and started again it goes on."""
    from assets.resource import TUNING
    from assets.tuning import find_search
    from orchestration.answers import say_tuned
    from orchestration.console import quieten
    from orchestration.examples.layout import find_project
    from orchestration.project import load
    from orchestration.run import open_instance, run_job

    quieten()
    path, overrides = find_project(project, overrides)
    settings = load(path, overrides)
    if settings.tuning is None:
        space = "`tuning: {space: {training.learning_rate: {low: 1.0e-4, high: 1.0e-2, log: true}}, trials: 20}`"
        raise click.ClickException(f"{path} says nothing of what is to be tried: add {space}, say")
    click.secho(f"Triptych · project {settings.name} · {settings.path}", bold=True, err=True)
    with open_instance(settings.home) as instance:
        run_job(settings, instance, overrides=overrides, debug=context.obj["debug"], apart=TUNING)
    say_or_dump(find_search(settings), as_json, partial(say_tuned, project=project))


@main.command()
@click.argument("project")
@click.option("--listen", metavar="HOST:PORT", help="Where silos reach it; default: federation.listen.")
@click.option("--tokens", is_flag=True, help="Only show the token that each silo needs, by the secret set here.")
@set_option
@json_option
@click.pass_context
def federate(
    context: click.Context, project: str, listen: str | None, tokens: bool, overrides: tuple[str, ...], as_json: bool
) -> None:
    """Train the project's model by silos whose data stay where they are; then it is judged as any other is."""
    from assets.federation import silo_tokens
    from orchestration.examples.layout import find_project
    from orchestration.project import load

    overrides = (*overrides, *([f"federation.listen={listen}"] if listen else []))
    path, known = find_project(project, overrides)
    settings = load(path, known)
    if tokens:
        for name, token in silo_tokens(settings):
            click.echo(f"{name}  {token}")
        return
    if settings.federation is None or settings.federation.listen is None:
        raise click.ClickException(
            f"{path} does not say where silos reach its coordinator: `federation: {{silos: [NAME, NAME], listen: "
            "127.0.0.1:8765}`, or --listen beside `silos`"
        )
    context.invoke(run, project=project, names=None, partition=None, overrides=overrides, as_json=as_json)


@main.command()
@click.argument("project")
@click.option("--coordinator", metavar="URL", help="Where the coordinator listens; default: federation.coordinator.")
@click.option("--name", metavar="SILO", help="Which of federation.silos this is; default: federation.silo.")
@set_option
@json_option
@click.pass_context
def silo(
    context: click.Context,
    project: str,
    coordinator: str | None,
    name: str | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Train a model together with other silos, on the rows that are here and stay here."""
    from assets.resource import SILO
    from orchestration.answers import say_silo
    from orchestration.console import quieten
    from orchestration.examples.layout import find_project
    from orchestration.project import load
    from orchestration.run import open_instance, run_job, silo_report

    quieten()
    path, overrides = find_project(project, overrides)
    said = {"silo": name, "coordinator": coordinator}
    overrides = (*overrides, *(f"federation.{key}={value}" for key, value in said.items() if value))
    settings = load(path, overrides)
    if settings.federation is None or settings.federation.coordinator is None:
        raise click.ClickException(f"{path} names no coordinator to ask: give --coordinator URL and --name SILO")
    click.secho(f"Triptych · project {settings.name} · {settings.path}", bold=True, err=True)
    with open_instance(settings.home) as instance:
        result = run_job(settings, instance, overrides=overrides, debug=context.obj["debug"], apart=SILO)
    say_or_dump(silo_report(result), as_json, say_silo)


@main.command()
@click.argument("project")
@click.argument("query")
@click.option("--snapshot", metavar="FINGERPRINT", help="The tables as they were when this dataset was made.")
@set_option
@json_option
def sql(project: str, query: str, snapshot: str | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """Ask DuckDB over the project's tables: manifest, clean_*, quarantine, samples, *_features, dataset."""
    import duckdb

    from assets.pipeline import open_lake
    from assets.snapshots import as_of
    from orchestration.examples.layout import find_project
    from orchestration.project import load

    path, overrides = find_project(project, overrides)
    lake = open_lake(load(path, overrides))
    with (lake if snapshot is None else as_of(lake, snapshot)).connect() as connection:
        try:
            relation = connection.sql(query)
        except duckdb.Error as error:
            raise click.ClickException(str(error)) from None
        if relation is None:
            return
        if as_json:
            rows = relation.to_arrow_table().to_pylist()
            click.echo(json.dumps({"rows": rows}, default=_plain))
        else:
            relation.show(max_rows=100)


def _plain(value: Any) -> Any:
    return f"<{len(value)} bytes>" if isinstance(value, bytes) else str(value)


@main.command()
@click.argument("project")
@input_options
@click.option(
    "--table",
    type=_FILE,
    help=f"A table with columns {', '.join(MODALITIES.names())} (file names); one answer a row.",
)
@click.option("--column", "columns", multiple=True, metavar="NAME=VALUE", help="Of a column that model.prompt names.")
@click.option(
    "--group", metavar="VALUE", help="Whose row it is: its adapter answers, if there is one (personalization)."
)
@click.option(
    "--to", type=click.Path(file_okay=False, path_type=Path), help="Folder for pictures and speech: N.NAME.png."
)
@click.option("--best", type=click.IntRange(0), default=5, show_default=True, help="How many of the best --json gives.")
@version_option
@json_option
@click.pass_context
def predict(
    context: click.Context,
    project: str,
    table: Path | None,
    columns: tuple[str, ...],
    group: str | None,
    to: Path | None,
    best: int,
    version: str,
    as_json: bool,
    **inputs: Any,
) -> None:
    """Answer with the project's champion, whichever inputs are given."""
    from orchestration.answers import said
    from orchestration.examples.layout import find_project
    from orchestration.predict import answer, named_value, refusal, rows_of_table, written
    from orchestration.project import load

    if (table is None) == (not any(inputs.values())):
        options = ", ".join(f"--{name}" for name in inputs)
        raise click.UsageError(f"give one or more of {options}, or --table")
    if table is not None and (columns or group):
        raise click.UsageError(
            "--column and --group go with the inputs of one row: a --table has such columns of its own"
        )
    settings = load(*find_project(project, ()))
    inputs = _given(context, inputs, settings.align.places)
    named = dict(named_value(text, settings.asked_columns) for text in columns)
    if group is not None:
        if settings.personalization is None:
            raise click.ClickException(f"--group {group}: {settings.path} has no `personalization: {{group: COLUMN}}`")
        named[settings.personalization.group] = group
    places = settings.align.places
    rows = rows_of_table(table, settings.asked_columns, places) if table else [inputs | named]
    answers = answer(settings, rows, version, best)
    if settings.make_output().answers_with:
        answers = written(answers, to or Path())
    if as_json:
        click.echo(json.dumps({"predictions": answers}, default=_plain))
    else:
        for row in answers:
            click.echo(said(row))  # a row that failed has its line, too
        for number, row in enumerate(answers, 1):
            for name, part in row.get("outputs", {"": row}).items():
                if part["abstained"]:
                    below = f"is below {settings.model.abstain_below:g} (model.abstain_below)"
                    which = f"{number}, {name}," if name else str(number)
                    chance = f"its probability, {part['probability']:g}, {below}"
                    click.echo(f"row {which} is not answered: {chance}", err=True)
        first, only = answers[0], len(answers) == 1 and answers[0]["probability"] is not None
        sure = f", probability {first['probability']:g}" if only else ""
        origin = f"{settings.name} version {first['model_version']}, dataset {first['dataset_fingerprint']}"
        whose = f", adapter of {first['adapter']}" if len(answers) == 1 and first.get("adapter") else ""
        logged = f", answer {first['answer_id']}" if len(answers) == 1 and "answer_id" in first else ""
        click.echo(f"({origin}{sure}{whose}{logged})", err=True)
    if failed := [refusal(rows, n, row["error"]) for n, row in enumerate(answers, 1) if "error" in row]:
        raise click.ClickException("\n".join(failed))


def _given(context: click.Context, inputs: dict[str, Any], places: Mapping[str, Places]) -> dict[str, Any]:
    """The inputs that options name: files that are there, texts as they are; a list where there are several, or by
    view."""
    from orchestration.predict import by_view, file_of, one_or_all

    given: dict[str, Any] = {}
    for option in context.command.params:
        if option.name in inputs:
            names, values = views(places.get(option.name, 1)), inputs[option.name]
            named = by_view(values, names, f"--{option.name}") if names else dict(enumerate(values))
            files = {view: file_of(option.name, value) for view, value in named.items()}
            read = {v: _FILE.convert(f, option, context) if isinstance(f, Path) else f for v, f in files.items()}
            given[option.name] = (read if names else one_or_all(list(read.values()))) if read else None
    return given


@main.command()
@click.argument("project")
@input_options
@click.option("--k", type=click.IntRange(1), default=10, show_default=True, help="How many samples.")
@click.option(
    "--find", multiple=True, type=click.Choice(MODALITIES.names()), help="What is searched; default: what is not given."
)
@version_option
@json_option
@click.pass_context
def search(
    context: click.Context, project: str, k: int, find: tuple[str, ...], version: str, as_json: bool, **inputs: Any
) -> None:
    """Find the samples nearest to a text, a picture or a recording (of a project with output: embedding)."""
    from orchestration.answers import say_found
    from orchestration.examples.layout import find_project
    from orchestration.project import load
    from orchestration.search import search as find_nearest

    if not any(inputs.values()):
        raise click.UsageError(f"give one or more of {', '.join(f'--{name}' for name in inputs)}")
    settings = load(*find_project(project, ()))
    given = _given(context, inputs, settings.align.places)
    found = find_nearest(settings, given, k, find, version, lambda words: click.echo(words, err=True))
    say_or_dump(found, as_json, say_found)


@main.command()
@click.argument("project")
@click.argument("name", metavar="ID")
@click.option("--version", help="The model whose test row a sample was; default: the champion, or the newest version.")
@click.option("--k", type=click.IntRange(0), default=5, show_default=True, help="How many of the nearest rows.")
@json_option
def trace(project: str, name: str, version: str | None, k: int, as_json: bool) -> None:
    """From an answer, a test sample or a file to model, dataset, rows and raw files, and back.

    ID is that of an answer or of a sample; of an item its id, key, hash or path: then every sample, dataset and model
    that saw it.
    """
    from orchestration.answers import say_traced
    from orchestration.examples.layout import find_project
    from orchestration.project import load
    from orchestration.trace import trace as follow

    say_or_dump(follow(load(*find_project(project, ())), name, version, k), as_json, say_traced)


@main.command()
@click.argument("project")
@click.argument("answer_id")
@click.argument("verdict", type=click.Choice(["right", "wrong"]))
@click.option("--answer", metavar="TEXT", help="The right answer, where it was wrong.")
@click.option("--by", metavar="WHO", help="Who says it: of each person the latest word counts.")
@json_option
def feedback(project: str, answer_id: str, verdict: str, answer: str | None, by: str | None, as_json: bool) -> None:
    """Say whether an answer was right; with `preference` in the project file a model learns from it."""
    from orchestration.answers import say_marked
    from orchestration.examples.layout import find_project
    from orchestration.feedback import mark
    from orchestration.project import load

    say_or_dump(mark(load(*find_project(project, ())), answer_id, verdict, answer, by), as_json, say_marked)


@main.command()
@click.argument("project")
@click.argument("sample")
@click.option(
    "--to", type=click.Path(file_okay=False, path_type=Path), help="Folder of the picture; default: the project's own."
)
@version_option
@json_option
def explain(project: str, sample: str, to: Path | None, version: str, as_json: bool) -> None:
    """Draw what the answer to a SAMPLE hangs on: its words, its pixels, its spectrogram."""
    from assets.explaining import explain_samples
    from orchestration.answers import say_explained
    from orchestration.examples.layout import find_project
    from orchestration.project import load
    from training.model_registry import find_version

    settings = load(*find_project(project, ()))
    number = find_version(settings.mlflow_uri, settings.name, version)
    folder = to or settings.folder / "explanations" / f"version_{number}"
    (explained,) = explain_samples(settings, number, [sample], folder)
    if explained.error is not None:
        raise click.ClickException(f"{sample}: {explained.error}")
    say_or_dump(explained, as_json, say_explained)


@main.command()
@click.argument("project")
@click.option("--version", help="A number or an alias; default: the champion.")
@click.option("--since", type=click.DateTime(), help="Answers from then on, in UTC; default: the newest 2,000.")
@json_option
def drift(project: str, version: str | None, since: datetime | None, as_json: bool) -> None:
    """Whether what the model is asked, and what it answers, is still as in its test: by the log of answers."""
    from orchestration.answers import say_drift
    from orchestration.drift import drift as compare
    from orchestration.examples.layout import find_project
    from orchestration.project import load

    at = since.replace(tzinfo=UTC) if since else None
    say_or_dump(compare(load(*find_project(project, ())), version, at), as_json, say_drift)


@main.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--example", help="Lay out a built-in example: digits, drive, mirror or spoken_digits.")
@click.option(
    "--data",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Where the media and tables lie; default: in FOLDER.",
)
def init(folder: Path, example: str | None, data: Path | None) -> None:
    """Write a commented project file into FOLDER (and, for an example, its data).

    Where media or tables lie there, it proposes sources, keys and a label that fit them; nothing else is written.
    """
    from orchestration.examples.layout import EXAMPLES, lay_out, write_template

    proposes = False
    if example is None:
        path, proposes = write_template(folder, data)
    elif example in EXAMPLES:
        path = lay_out(example, folder, str(data.resolve()) if data else None)
    else:
        raise click.UsageError(f"--example {example}: there are {', '.join(EXAMPLES)}")
    name = shlex.quote(str(folder))
    todo = "read what it proposes for the files there" if proposes else "edit it"
    click.echo(f"{path}\nNext: {todo}, then `triptych check {name}` and `triptych run {name}`")


@main.command()
@click.argument("project")
@click.option("--partition", metavar="KEY", help="What a run of only this partition, or FIRST...LAST, would make.")
@set_option
@json_option
def check(project: str, partition: str | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """Check the project file and look at the sources; nothing is written or run."""
    from orchestration import inspection
    from orchestration.answers import say_check
    from orchestration.examples.layout import find_project
    from orchestration.project import load

    report = inspection.check(load(*find_project(project, overrides)), partition=partition)
    say_or_dump(report, as_json, say_check)
    if report.problem:
        raise click.ClickException(report.problem)


@main.command()
@click.argument("project")
@json_option
def status(project: str, as_json: bool) -> None:
    """Show tables, model versions and the champion."""
    from orchestration import inspection
    from orchestration.answers import say_status
    from orchestration.examples.layout import find_project
    from orchestration.project import load

    say_or_dump(inspection.status(load(*find_project(project, ()))), as_json, say_status)


@main.command()
@click.argument("project")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Where to write it.")
@json_option
def report(project: str, output: Path | None, as_json: bool) -> None:
    """Write an HTML report with tables, models, the gate's reasons and pictures."""
    from orchestration.examples.layout import find_project
    from orchestration.project import load
    from orchestration.report import write_report

    settings = load(*find_project(project, ()))
    path = write_report(settings, output or settings.folder / "report.html")
    click.echo(json.dumps({"report": str(path)}) if as_json else path)


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=3000, show_default=True, help="Dagster's.")
@click.option("--mlflow-port", default=5000, show_default=True)
def ui(host: str, port: int, mlflow_port: int) -> None:
    """Start the web UIs of Dagster (with its daemon, so schedules run) and MLflow."""
    from assets.links import write_addresses
    from orchestration.processes import free_dead_runs
    from orchestration.project import home, tracking_uri
    from orchestration.run import open_instance
    from orchestration.servers import run_ui

    state = home()
    with open_instance(state) as instance:  # writes dagster.yaml at first use
        free_dead_runs(instance)
    uri = tracking_uri() or f"sqlite:///{state / 'mlflow.db'}"
    mlflow = uri if uri.startswith("http") else f"http://{host}:{mlflow_port}"
    write_addresses(state, f"http://{host}:{port}", mlflow)
    click.echo(f"Dagster  http://{host}:{port}\nMLflow   {mlflow}/#/experiments?workflowType=machine_learning")
    click.echo("Ctrl-C stops both.")
    sys.exit(run_ui(state, host, port, mlflow_port, uri))


@main.command()
@click.argument("project")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=5001, show_default=True)
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Processes with the model each.")
@click.option("--batch", type=click.IntRange(1), default=64, show_default=True, help="Rows that are answered together.")
@version_option
def serve(project: str, host: str, port: int, workers: int, batch: int, version: str) -> None:
    """Serve the champion over HTTP: a page at /, MLflow's scoring protocol at POST /invocations."""
    from orchestration.answer_log import log_environment
    from orchestration.examples.layout import find_project
    from orchestration.project import load
    from orchestration.servers import check_free, run_until_stopped, serve_command
    from training.model_registry import find_version, local_model

    settings = load(*find_project(project, ()))
    version = find_version(settings.mlflow_uri, settings.name, version)
    check_free(host, port)
    page, url = f"http://{host}:{port}/", f"http://{host}:{port}/invocations"
    click.echo(f"{settings.name} version {version}\nTry it in a browser:  {page}")
    click.echo("Ask it, with media as base64 and what is not there null:")
    rows = json.dumps({"dataframe_records": [dict.fromkeys(settings.inputs, "...")]})
    click.echo(f"  curl {url} -H 'Content-Type: application/json' -d '{rows}'")
    model = local_model(settings.mlflow_uri, settings.name, version, settings.folder / "cache")
    command, env = serve_command(model, host, port, "--workers", str(workers), "--batch", str(batch))
    env |= log_environment(settings, version)
    given = json.loads(os.environ.get("SERVING_MODEL_CONFIG") or "{}")
    env["SERVING_MODEL_CONFIG"] = json.dumps({"abstain_below": settings.model.abstain_below, **given})
    sys.exit(run_until_stopped([command], env, left=": the requests under way were answered."))


@main.command()
@click.argument("project")
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@click.option("--erase", "item", metavar="ITEM", help="Remove an item (id, key, hash or path) from every table.")
@click.option("--purge-artifacts", is_flag=True, help="With --erase: also delete the models trained on it.")
@click.option("--retrain", is_flag=True, help="With --erase: then train a model without it, which the gate judges.")
@json_option
def gc(project: str, dry_run: bool, item: str | None, purge_artifacts: bool, retrain: bool, as_json: bool) -> None:
    """Compact the tables and remove what no manifest or kept snapshot refers to."""
    from filelock import Timeout

    from orchestration.answers import say_collected, say_erased
    from orchestration.erasure import erase, train_again
    from orchestration.examples.layout import find_project
    from orchestration.housekeeping import collect
    from orchestration.processes import project_lock
    from orchestration.project import load

    for option, is_given in (("--purge-artifacts", purge_artifacts), ("--retrain", retrain)):
        if is_given and item is None:
            raise click.UsageError(f"{option} goes with --erase")
    settings = load(*find_project(project, ()))
    try:
        with project_lock(settings):  # what a run is reading must not go
            if item is None:
                say_or_dump(collect(settings, dry_run), as_json, say_collected)
            else:
                erased = erase(settings, item, dry_run, purge_artifacts, retrain)
    except Timeout:
        raise click.ClickException(f"a run of {settings.name} is at work: try again when it is done") from None
    if item is None:
        return
    if retrain and not dry_run:
        erased = train_again(settings, erased)
    say_or_dump(erased, as_json, partial(say_erased, purge=purge_artifacts))


def entry() -> None:
    """The console script. Ends without tearing the interpreter down: DuckDB beside torch then prints leak warnings."""
    import atexit
    import traceback

    code = 0
    try:
        main(standalone_mode=True)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except Exception:  # with --debug
        click.echo(mask(traceback.format_exc()), err=True)
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    entry()
