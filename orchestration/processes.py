"""Which process a run is in, and what to do with runs whose process is gone (kill -9, power cut)."""

import os
import socket

import dagster as dg
import psutil

# host|pid|start; Dagster's UI hides tags of this prefix
_PROCESS = ".dagster/triptych_process"
_LOOK_SECONDS = 0.5  # between two looks whether a pool is free


def this_process() -> dict[str, str]:
    """The tag of a run in this process."""
    return {_PROCESS: f"{socket.gethostname()}|{os.getpid()}|{psutil.Process().create_time()}"}


def free_dead_runs(instance: dg.DagsterInstance) -> list[str]:
    """Ends runs of this machine whose process is gone and frees their pool slots; returns their ids."""
    freed = []
    for run in instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.STARTING])):
        host, _, rest = run.tags.get(_PROCESS, "").partition("|")
        if host != socket.gethostname():
            continue
        if not alive(*(float(part) for part in rest.split("|"))):
            instance.report_run_failed(run, "The process of this run is gone; it was ended by the next run.")
            instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
            freed.append(run.run_id)
    return freed


def alive(pid: float, started: float) -> bool:
    """Whether the process that had this id and start time still is."""
    try:
        return abs(psutil.Process(int(pid)).create_time() - started) < 1
    except psutil.NoSuchProcess:
        return False


def wait_quietly() -> None:
    """Makes a run in this process sleep while another holds the pool that it waits for.

    Dagster 1.13 takes the minimum of zero and the time to the next look, so its in-process executor never sleeps and
    a run that waits takes a core from the training that it waits for.
    """
    from dagster._core.execution.plan.instance_concurrency_context import InstanceConcurrencyContext

    def interval(self: InstanceConcurrencyContext) -> float:
        return _LOOK_SECONDS if self.has_pending_claims() else 0.0

    InstanceConcurrencyContext.interval_to_next_pending_claim_check = interval  # type: ignore[method-assign]
