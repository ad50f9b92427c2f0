"""Which runs have a process, and what to do with those whose process is gone (kill -9, power cut, a container's end).

A run holds a lock on a file of its own as long as its process lives. Neither process ids nor host names would tell:
the first are used again, and a container has another name at each start.
"""

import contextlib
import signal
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
import dagster as dg
from filelock import FileLock, Timeout

from assets.settings import Project
from assets.spill import remove_left

_LOOK_SECONDS = 0.5  # between two looks whether a pool is free
_START_SECONDS = 180  # a run that no process has taken up by then was lost; Dagster's daemon waits as long
_held: dict[str, FileLock] = {}  # by run; a lock that nothing refers to is let go


def hold(instance: dg.DagsterInstance, run_id: str) -> None:
    """Says that the run is in this process, until `let_go` or the end of the process, whatever ends it."""
    if run_id in _held:
        return
    folder = _locks(instance)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f"{run_id}.new")
    lock.acquire()
    Path(lock.lock_file).rename(folder / f"{run_id}.lock")  # never seen unlocked while the process lives
    _held[run_id] = lock


def let_go(run_id: str) -> None:
    """Says that this process is done with the run."""
    _held.pop(run_id).release()


def free_dead_runs(instance: dg.DagsterInstance) -> list[str]:
    """Ends runs of this TRIPTYCH_HOME whose process is gone and frees their pool slots; returns their ids."""
    freed = []
    for path in sorted(_locks(instance).glob("*.lock")):
        try:
            with FileLock(path, timeout=0):
                run = instance.get_run_by_id(path.stem)
                if run is not None and not run.is_finished:
                    freed.append(_end(instance, run))
                path.unlink(missing_ok=True)
        except Timeout:
            continue
    # Queued runs wait for the daemon, and need no process.
    starting = [dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.STARTING]
    overdue = datetime.now(UTC) - timedelta(seconds=_START_SECONDS)
    for run in instance.get_runs(dg.RunsFilter(statuses=starting, updated_before=overdue)):
        if not (_locks(instance) / f"{run.run_id}.lock").exists():
            freed.append(_end(instance, run))
    return freed


def _locks(instance: dg.DagsterInstance) -> Path:
    return Path(instance.root_directory) / "running"


def _end(instance: dg.DagsterInstance, run: dg.DagsterRun) -> str:
    instance.report_run_failed(run, "The process of this run is gone; it was ended by the next run.")
    instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
    return run.run_id


def project_lock(project: Project) -> FileLock:
    """Held by the run of the project that is at work; raises Timeout at once where another process holds it.

    Where the file says where its lake lies, on a disk, the lock lies there: others may use it from another
    TRIPTYCH_HOME.
    """
    folder = Path(project.lake_uri) if project.lake and "://" not in project.lake else project.folder
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / "run.lock", timeout=0, thread_local=False)


def wait_for_project(project: Project, instance: dg.DagsterInstance, run_id: str) -> FileLock:
    """Waits while another run of the project, or on its lake, is at work; returns the lock that keeps others waiting.

    Two at once would mix: each step reads the newest tables, and both could move the champion. The later one waits
    rather than fails, since a schedule's run that meets a person's is no fault, and finds most of its work done.
    """
    lock = project_lock(project)
    file = Path(lock.lock_file)  # written in place: a new file would not be locked
    try:
        lock.acquire()
    except Timeout:
        other = file.read_text()[:8]
        _tell(instance, run_id, f"run {other} of {project.name} is at work: this one waits until it is done")
        lock.acquire(timeout=-1, poll_interval=_LOOK_SECONDS)
    file.write_text(run_id)
    remove_left(project.spill)
    return lock


def _tell(instance: dg.DagsterInstance, run_id: str, words: str) -> None:
    """In the terminal and in the web UI."""
    click.secho(f"    {words}", fg="yellow", err=True)
    instance.report_engine_event(words, instance.get_run_by_id(run_id))


def wait_quietly() -> None:
    """Makes a run in this process sleep while another holds the pool that it waits for, and say once which one.

    Dagster 1.13 takes the minimum of zero and the time to the next look, so its in-process executor never sleeps and
    a run that waits takes a core from the training that it waits for.
    """
    from dagster._core.execution.plan.instance_concurrency_context import InstanceConcurrencyContext

    said: set[str] = set()  # runs that have said it

    def interval(self: InstanceConcurrencyContext) -> float:
        if not self.has_pending_claims():
            return 0.0
        free_dead_runs(self._instance)  # else nobody would, when the run that is waited for dies
        if self._run_id not in said and (why := waits_for(self._instance, self._run_id)):
            said.add(self._run_id)
            _tell(self._instance, self._run_id, why)
        return _LOOK_SECONDS

    InstanceConcurrencyContext.interval_to_next_pending_claim_check = interval  # type: ignore[method-assign]


def cancel_when_interrupted() -> None:
    """Makes a run in this process that Ctrl-C or SIGTERM ends CANCELED; for Dagster 1.13 it would have failed.

    Ctrl-C in a terminal reaches Dagster's helper that copies a step's output, too, and would be answered with a
    traceback.
    """
    from dagster._core.errors import DagsterExecutionInterruptedError
    from dagster._core.execution import compute_logs
    from dagster._core.executor.in_process import InProcessExecutor

    execute, tail = InProcessExecutor.execute, compute_logs.execute_posix_tail
    if execute.__module__ == __name__:
        return

    def canceling(self: InProcessExecutor, plan_context: Any, execution_plan: Any) -> Iterator[dg.DagsterEvent]:
        try:
            yield from execute(self, plan_context, execution_plan)
        except (KeyboardInterrupt, DagsterExecutionInterruptedError):
            run = plan_context.instance.get_run_by_id(plan_context.run_id)
            if run is not None and run.status == dg.DagsterRunStatus.STARTED:
                plan_context.instance.report_run_canceling(run)
            raise

    @contextlib.contextmanager
    def undisturbed(path: str, stream: Any) -> Iterator[Any]:
        with contextlib.ExitStack() as stack:
            before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # the helper inherits it
            try:
                helpers = stack.enter_context(tail(path, stream))
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
            yield helpers

    InProcessExecutor.execute = canceling  # type: ignore[method-assign]
    compute_logs.execute_posix_tail = undisturbed


def waits_for(instance: dg.DagsterInstance, run_id: str) -> str | None:
    """Which run holds the pool that this one waits for, in words; None where nothing is in its way."""
    storage = instance.event_log_storage
    for pool in sorted(storage.get_concurrency_keys()):
        slots = storage.get_concurrency_info(pool)
        owners = {slot.run_id for slot in slots.claimed_slots} - {run_id}
        if owners and any(step.run_id == run_id for step in slots.pending_steps):
            runs = [run for owner in sorted(owners) if (run := instance.get_run_by_id(owner))]
            holders = ", ".join(f"run {run.run_id[:8]} of {run.job_name}" for run in runs)
            return f"waiting for the pool {pool}, which {holders or 'a deleted run'} holds"
    return None
