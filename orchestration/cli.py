"""The command line: a thin face over the Dagster definitions that the web UI shows. ``triptych --help``"""

import json
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

# Everything heavy is imported inside the command that needs it: `triptych --help` must answer at once.


class _Group(click.Group):
    """Turns what a user can mend into one line on stderr and exit code 1; --debug shows the traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except BrokenPipeError:  # whoever read our output has had enough
            ctx.exit(1)
        except (ValueError, OSError, RuntimeError) as error:
            if ctx.params.get("debug"):
                raise
            click.secho(f"Error: {error}", fg="red", err=True)
            ctx.exit(1)
        except Exception as error:
            if ctx.params.get("debug"):
                raise
            click.secho(f"Error: {type(error).__name__}: {error} (triptych --debug shows more)", fg="red", err=True)
            ctx.exit(1)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
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


def _json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--json", "as_json", is_flag=True, help="End with one JSON object on stdout.")(command)


def _set_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--set", "overrides", multiple=True, metavar="KEY.PATH=VALUE", help="Override a setting of the project file."
    )(command)


def _version_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--version", default="champion", show_default=True, help="A version of the model, by number or alias."
    )(command)


@main.command()
@click.argument("project", required=False)
@click.option("--select", "names", metavar="ASSETS", help="Only these assets: a,b or +a (with upstream) or a+.")
@_set_option
@_json_option
@click.pass_context
def run(
    context: click.Context, project: str | None, names: str | None, overrides: tuple[str, ...], as_json: bool
) -> None:
    """Materialize the project's graph; without PROJECT, the built-in example."""
    from orchestration.console import quieten
    from orchestration.examples.layout import find_project
    from orchestration.project import load
    from orchestration.run import open_instance, run_job, summary

    quieten()
    path, overrides = find_project(project or "digits", overrides)
    settings = load(path, overrides)
    click.secho(f"Triptych · project {settings.name} · {settings.path}", bold=True, err=True)
    with open_instance(settings.home) as instance:
        result = run_job(settings, instance, names, overrides, debug=context.obj["debug"])
    told = summary(settings, result)
    if as_json:
        click.echo(json.dumps(told))
    else:
        _tell(told)


def _tell(told: dict[str, Any]) -> None:
    """The end of a run for a person: what was made and what to do with it."""
    if told["subsets"]:
        click.echo(f"\nTest accuracy by the inputs given ({told['metrics']['test/n']:,} rows)")
        bars = sorted(told["subsets"].items(), key=lambda pair: pair[1] or 0)
        if (usual := told["metrics"].get("test/majority_accuracy")) is not None:
            bars.insert(0, ("most frequent label", usual))
        width = max(len(name) for name, _ in bars)
        for name, value in bars:
            said = "no test row" if value is None else f"{value:6.3f}  {'█' * round(40 * value)}"
            click.echo(f"  {name:<{width}}  {said}")
    model = told["model"]
    if model["version"] is not None:
        alias = ", ".join(model["aliases"]) or "no alias"
        click.echo(f"\nModel {model['name']} version {model['version']} ({alias})")
        click.echo(f"  dataset {told['dataset']['fingerprint']}, MLflow run {told['mlflow_run_id']}")
        inputs = max(told["subsets"], key=len).split("+")
        asked = " ".join(f'--{name} "…"' if name == "text" else f"--{name} FILE" for name in inputs)
        which = "" if "champion" in model["aliases"] else f" --version {model['version']}"
        click.echo(f"  ask it:  triptych predict {told['project']}{which} {asked}")


@main.command()
@click.argument("project")
@click.argument("query")
@_set_option
@_json_option
def sql(project: str, query: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Ask DuckDB over the project's tables: manifest, clean_*, quarantine, samples, *_features, dataset."""
    import duckdb

    from assets.pipeline import open_lake
    from orchestration.examples.layout import find_project
    from orchestration.project import load

    path, overrides = find_project(project, overrides)
    with open_lake(load(path, overrides)).connect() as connection:
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
@click.option("--text", help="What is asked.")
@click.option("--image", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="An image file.")
@click.option("--speech", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="A sound file.")
@click.option(
    "--table",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A table with columns text, image, speech (file names); one answer a row.",
)
@_version_option
@_json_option
def predict(
    project: str,
    text: str | None,
    image: Path | None,
    speech: Path | None,
    table: Path | None,
    version: str,
    as_json: bool,
) -> None:
    """Answer with the project's champion, whichever inputs are given."""
    from orchestration.examples.layout import find_project
    from orchestration.predict import answer, rows_of_table
    from orchestration.project import load

    if (table is None) == (text is None and image is None and speech is None):
        raise click.UsageError("give one or more of --text, --image and --speech, or --table")
    settings = load(*find_project(project, ()))
    rows = rows_of_table(table) if table else [{"text": text, "image": image, "speech": speech}]
    answers = answer(settings, rows, version)
    if as_json:
        click.echo(json.dumps({"predictions": answers}))
    else:
        for row in answers:
            # A row that failed has its line, too.
            click.echo("" if row["prediction"] is None else row["prediction"])
        click.echo(
            f"({settings.name} version {answers[0]['model_version']}, dataset {answers[0]['dataset_fingerprint']})",
            err=True,
        )
    if failed := [f"row {n} cannot be answered: {row['error']}" for n, row in enumerate(answers, 1) if "error" in row]:
        raise click.ClickException("\n".join(failed))


@main.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--example", help="Lay out a built-in example: digits or spoken_digits.")
@click.option("--data", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Media of the example.")
def init(folder: Path, example: str | None, data: Path | None) -> None:
    """Write a commented project file into FOLDER (and, for an example, its data)."""
    from orchestration.examples.layout import EXAMPLES, lay_out, write_template

    if example is None:
        path = write_template(folder)
    elif example in EXAMPLES:
        path = lay_out(example, folder, str(data.resolve()) if data else None)
    else:
        raise click.UsageError(f"--example {example}: there are {', '.join(EXAMPLES)}")
    place = shlex.quote(str(folder))
    click.echo(f"{path}\nNext: edit it, then `triptych check {place}` and `triptych run {place}`")


@main.command()
@click.argument("project")
@_set_option
@_json_option
def check(project: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Check the project file and look at the sources; nothing is written or run."""
    from orchestration.examples.layout import find_project
    from orchestration.inspection import check as look
    from orchestration.project import load

    told = look(load(*find_project(project, overrides)))
    if as_json:
        click.echo(json.dumps(told))
    else:
        _tell_check(told)
    if told["problem"]:
        raise click.ClickException(told["problem"])


def _tell_check(told: dict[str, Any]) -> None:
    for name, facts in told["sources"].items():
        click.echo(f"{name:<18} {facts['listed']:>9,} items, {facts['refused']:,} refused")
    for title, key in (("refused", "refused_examples"), ("unmatched", "unmatched_examples")):
        if told[title]:
            click.echo(f"\n{title}: " + ", ".join(f"{n:,} {reason}" for reason, n in told[title].items()))
            for message in told[key]:
                click.echo(f"  {message}")
    for message in told["unreadable"]:
        click.secho(f"cannot be read: {message}", fg="yellow")
    click.echo("\nsamples: " + ", ".join(f"{n:,} {split}" for split, n in sorted(told["samples"].items())))


@main.command()
@click.argument("project")
@_json_option
def status(project: str, as_json: bool) -> None:
    """Show tables, model versions and the champion."""
    from orchestration.examples.layout import find_project
    from orchestration.inspection import status as look
    from orchestration.project import load

    told = look(load(*find_project(project, ())))
    if as_json:
        click.echo(json.dumps(told))
        return
    click.echo(f"{told['project']}  {told['file']}\nlake  {told['lake']}\n")
    for name, facts in told["tables"].items():
        click.echo(f"  {name:<18} {facts['rows']:>10,} rows   version {facts['version']}")
    click.echo("\nno model yet" if not told["models"] else "")
    for model in told["models"]:
        accuracy = "" if model["accuracy"] is None else f"test accuracy {model['accuracy']:.4f}"
        click.echo(f"  version {model['version']:<4} {', '.join(model['aliases']):<22} {accuracy}")
        for reason in model["reasons"]:
            click.secho(f"    {reason}", dim=True)


@main.command()
@click.argument("project")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Where to write it.")
@_json_option
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
    from orchestration.processes import free_dead_runs
    from orchestration.project import home
    from orchestration.run import open_instance
    from orchestration.servers import run_ui

    state = home()
    with open_instance(state) as instance:  # writes dagster.yaml at first use
        free_dead_runs(instance)
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{state / 'mlflow.db'}"
    mlflow = uri if uri.startswith("http") else f"http://{host}:{mlflow_port}"
    click.echo(f"Dagster  http://{host}:{port}\nMLflow   {mlflow}/#/experiments?workflowType=machine_learning")
    click.echo("Ctrl-C stops both.")
    sys.exit(run_ui(state, host, port, mlflow_port, uri))


@main.command()
@click.argument("project")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=5001, show_default=True)
@_version_option
def serve(project: str, host: str, port: int, version: str) -> None:
    """Serve the champion over HTTP (MLflow's scoring server): POST /invocations."""
    from orchestration.examples.layout import find_project
    from orchestration.project import load
    from orchestration.servers import check_free, run_until_stopped
    from training.model_registry import fetch_model, find_version, serve_command

    settings = load(*find_project(project, ()))
    version = find_version(settings.mlflow_uri, settings.name, version)
    check_free(host, port)
    url = f"http://{host}:{port}/invocations"
    click.echo(f"{settings.name} version {version} at {url}\nAsk it, with media as base64 and what is not there null:")
    rows = json.dumps({"dataframe_records": [dict.fromkeys(settings.modalities, "...")]})
    click.echo(f"  curl {url} -H 'Content-Type: application/json' -d '{rows}'")
    model = fetch_model(settings.mlflow_uri, settings.name, version)
    command, env = serve_command(model, host, port)
    sys.exit(run_until_stopped([command], env))


@main.command()
@click.argument("project")
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@click.option("--erase", "item", metavar="ITEM", help="Remove an item (id, key, hash or path) from every table.")
@click.option("--purge-artifacts", is_flag=True, help="With --erase: also delete the models trained on it.")
@_json_option
def gc(project: str, dry_run: bool, item: str | None, purge_artifacts: bool, as_json: bool) -> None:
    """Compact the tables and remove what no manifest or kept snapshot refers to."""
    from filelock import Timeout

    from orchestration.examples.layout import find_project
    from orchestration.housekeeping import collect, erase
    from orchestration.processes import project_lock
    from orchestration.project import load

    if purge_artifacts and item is None:
        raise click.UsageError("--purge-artifacts goes with --erase")
    settings = load(*find_project(project, ()))
    try:
        with project_lock(settings):  # what a run is reading must not go
            told = collect(settings, dry_run) if item is None else erase(settings, item, dry_run, purge_artifacts)
    except Timeout:
        raise click.ClickException(f"a run of {settings.name} is at work: try again when it is done") from None
    if as_json:
        click.echo(json.dumps(told))
        return
    click.echo("would be removed:" if dry_run else "removed:")
    for name, rows in told["removed"].items():
        if rows:
            click.echo(f"  {name:<18} {rows:>9,} rows")
    if not any(told["removed"].values()):
        click.echo("  nothing")
    for name, files in told.get("compacted", {}).items():
        click.echo(f"  {name:<18} {files:>9,} files compacted")
    for model in told.get("models", ()):
        click.echo(f"  made from it: version {model['version']}, MLflow run {model['run_id']}")
    for run in told.get("runs", ()):
        click.echo(f"  made from it: {run['role']}, MLflow run {run['run_id']}")
    if item is not None:
        click.echo(f"  made from it: {told['previews']}")
        click.echo("  The source is not touched: what is still there comes back with the next run.")
        if (told["models"] or told["runs"]) and (dry_run or not purge_artifacts):
            click.echo("  --purge-artifacts deletes these models and runs")


def entry() -> None:
    """The console script. Ends without tearing the interpreter down: DuckDB beside torch then prints leak warnings."""
    import atexit

    code = 0
    try:
        main(standalone_mode=True)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    entry()
