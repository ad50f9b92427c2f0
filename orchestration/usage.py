"""What all commands have in common: how errors are said, the options that several take, answers in words or as JSON."""

import dataclasses
import json
import signal
from collections.abc import Callable
from typing import Any, NoReturn

import click

from orchestration.signals import NAMES, came, interruptible
from training.catalog import MODALITIES


class Group(click.Group):
    """Turns an error into one line on stderr and exit code 1 (--debug shows the traceback), and what stops a command
    into one line and 130 or 143."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with interruptible():
                return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            _say_stopped(ctx, str(stop))
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except BrokenPipeError:  # whoever read our output has had enough
            ctx.exit(1)
        except Exception as error:
            if ctx.params.get("debug"):
                raise
            if came() is not None:  # a library had made an error of its own of it
                _say_stopped(ctx)
            from orchestration.faults import words
            from orchestration.project import home

            click.secho(f"Error: {words(error, home())}", fg="red", err=True)
            ctx.exit(1)


def _say_stopped(ctx: click.Context, words: str = "") -> NoReturn:
    number = signal.Signals(came() or signal.SIGINT)
    click.secho(f"Stopped by {NAMES[number]}{': ' + words if words else '.'}", fg="yellow", err=True)
    ctx.exit(128 + number)


def json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--json", "as_json", is_flag=True, help="End with one JSON object on stdout.")(command)


def set_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--set", "overrides", multiple=True, metavar="KEY.PATH=VALUE", help="Override a setting of the project file."
    )(command)


class _InputOption(click.Option):
    """Of one modality. Whether it takes a file is said when help is asked for: to know it, modules are imported."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        is_text = MODALITIES.load(str(self.name)).is_text
        media = (
            "FILE",
            f"The file of the {self.name}; again for each of several (align.several), of views VIEW=FILE.",
        )
        self.metavar, self.help = ("TEXT", "What is asked; again for each of several texts.") if is_text else media
        return super().get_help_record(ctx)


def input_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """An option for each modality, which may be given several times."""
    for name in reversed(MODALITIES.names()):
        command = click.option(f"--{name}", cls=_InputOption, multiple=True)(command)
    return command


def version_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--version", default="champion", show_default=True, help="A version of the model, by number or alias."
    )(command)


def say_or_dump(report: Any, as_json: bool, say: Callable[[Any], None]) -> None:
    """What a command found out, a dataclass: in words, or with --json as the one object that stdout ends with."""
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(report)))
    else:
        say(report)
