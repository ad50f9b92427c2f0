"""What a run says in the terminal: a line when an asset is done, what it says meanwhile, and why one failed."""

import logging
import os
import sys
import time
import warnings

import click
import dagster as dg
from dagster import DagsterEventType

from training.credentials import mask

WIDTH = 18  # of the column of asset names


class _Handler(logging.Handler):
    """Dagster's events as lines on stderr; stdout stays free for what a command answers."""

    def __init__(self, debug: bool) -> None:
        super().__init__(logging.DEBUG)  # Dagster logs its events at that level
        self.least = logging.DEBUG if debug else logging.INFO
        self.started: dict[str, float] = {}

    def emit(self, record: logging.LogRecord) -> None:
        meta = getattr(record, "dagster_meta", {})
        event, step = meta.get("dagster_event"), meta.get("step_key") or ""
        if event is None:
            said = str(meta.get("orig_message"))  # without what Dagster says of itself
            ours = not said.startswith(("[pipes]", "Dependencies for step"))
            if record.levelno >= self.least and step and (ours or self.least == logging.DEBUG):
                color = "yellow" if record.levelno >= logging.WARNING else None
                _say(f"    {meta.get('orig_message') or record.getMessage()}", fg=color, dim=color is None)
            return
        kind = event.event_type
        if kind == DagsterEventType.ENGINE_EVENT and self.least == logging.DEBUG:
            if error := event.engine_event_data.error:  # of the trainer, where it had one
                _say(error.to_string(), dim=True)
        elif kind == DagsterEventType.STEP_START:
            self.started[step] = time.monotonic()
        elif kind == DagsterEventType.ASSET_MATERIALIZATION:
            materialization = event.event_specific_data.materialization
            summary = materialization.metadata.get("summary")
            if materialization.partition is not None and summary is None:  # one of them says it for all
                return
            reported = materialization.metadata.get("seconds")  # of one of the things that a step makes
            spent = time.monotonic() - self.started.get(step, time.monotonic())
            seconds = spent if reported is None else reported.value
            said = summary.text if summary is not None else ""
            _say(f"  ✓ {materialization.asset_key.path[-1]:<{WIDTH}} {said}  ({seconds:.1f} s)", fg="green")
        elif kind == DagsterEventType.ASSET_CHECK_EVALUATION and not event.event_specific_data.passed:
            check = event.event_specific_data
            why = f": {check.description}" if check.description else ""
            sign, color = ("!", "yellow") if check.severity == dg.AssetCheckSeverity.WARN else ("✗", "red")
            _say(f"  {sign} check {check.check_name} of {check.asset_key.path[-1]} failed{why}", fg=color)
            for key, value in check.metadata.items():
                if not isinstance(value, dg.MarkdownMetadataValue):  # tables are for the web UI
                    _say(f"      {key}: {value.value}", fg=color)


def _say(text: str, **style: object) -> None:
    click.secho(mask(text), file=sys.stderr, **style)  # type: ignore[arg-type]


@dg.logger({"debug": dg.Field(bool, default_value=False)}, description="One line an asset, on stderr.")
def lines(context: dg.InitLoggerContext) -> logging.Logger:
    """The logger `triptych run` configures its runs with."""
    logger = logging.Logger("triptych.run", logging.DEBUG)
    logger.addHandler(_Handler(context.logger_config["debug"]))
    return logger


def quieten() -> None:
    """Keeps what libraries say of themselves out of the terminal, here and in child processes."""
    os.environ.setdefault("TQDM_DISABLE", "" if sys.stderr.isatty() else "1")
    warnings.filterwarnings("ignore", category=dg.PreviewWarning)
    warnings.filterwarnings("ignore", category=dg.BetaWarning)
