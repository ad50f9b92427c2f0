"""What Dagster has recorded of a project's runs: previews and messages show items, so erasing reaches there."""

import contextlib
import shutil
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
from dagster._core.scheduler.instigation import TickStatus

_BUSY_SECONDS = 30  # that others may keep a database


def recorded_runs(instance: dg.DagsterInstance, project: str) -> list[str]:
    """The ids of the finished runs that made assets of the project, also those of Dagster's own jobs."""
    return [run.run_id for run in instance.get_runs() if run.is_finished and is_of(run, project)]


def is_of(run: dg.DagsterRun, project: str) -> bool:
    keys = {*(run.asset_selection or ()), *(check.asset_key for check in run.asset_check_selection or ())}
    return run.job_name == project or any(key.path[0] == project for key in keys)


def forget(instance: dg.DagsterInstance, project: str) -> None:
    """Deletes the project's finished runs with all that was recorded of them, and what was seen of its assets last.

    Raises:
        OSError: what was deleted still lies in a database, since another process is reading it.
    """
    home = Path(instance.root_directory)
    for run_id in recorded_runs(instance, project):
        instance.delete_run(run_id)
        instance.compute_log_manager.delete_logs(prefix=[run_id])
        shutil.rmtree(home / "storage" / run_id, ignore_errors=True)
        for file in (home / "history" / "runs").glob(f"{run_id}.db*"):  # its rows are gone, but not their bytes
            file.unlink()
    instance.wipe_assets([key for key in instance.get_asset_keys() if key.path[0] == project])
    for state in instance.all_instigator_state():
        if state.name in {f"{project}_{what}" for what in ("schedule", "files", "failures", "refusals", "automation")}:
            # Of a failed look the message, which may name a file.
            instance.purge_ticks(state.instigator_origin_id, state.selector_id, time.time(), list(TickStatus))


def scrub(home: Path) -> None:
    """Takes the bytes of deleted rows out of the SQLite databases of a TRIPTYCH_HOME.

    Raises:
        OSError: another process is reading one of them.
    """
    for database in _databases(home):
        with contextlib.closing(sqlite3.connect(database, timeout=_BUSY_SECONDS)) as connection:
            try:
                connection.execute("VACUUM")
                busy = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
            except sqlite3.OperationalError:
                busy = 1
        if busy:
            raise OSError(
                f"{database} is in use, so it still holds what was erased: stop `triptych ui`, then try again"
            )


def _databases(home: Path) -> Iterator[Path]:
    yield from home.glob("*.db")
    for folder in ("history", "schedules"):
        yield from (home / folder).rglob("*.db")
