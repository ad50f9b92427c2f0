"""Starts the trainer as a child of this process, on this machine."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from assets.launchers.base import Launcher, reports_of
from training import children

if TYPE_CHECKING:
    import dagster as dg

_STOP_SECONDS = 20  # a trainer that was asked to stop has this long


class SubprocessLauncher(Launcher):
    """The child dies with its parent (`training.job` sees to it)."""

    program: tuple[str, ...] = ("training.job",)  # a module, and its arguments

    def launch(self, context: "dg.AssetExecutionContext", spec: Mapping[str, Any]) -> list[dict[str, Any]]:
        import dagster as dg

        from assets.trainer_messages import WholeLineMessageReader

        # As PipesSubprocessClient does, which tells neither how the child ended nor what it said last.
        injector, reader = dg.PipesTempFileContextInjector(), WholeLineMessageReader()
        with dg.open_pipes_session(context, injector, reader, extras={"spec": dict(spec)}) as session:
            mine = {children.PARENT: str(os.getpid()), **session.get_bootstrap_env_vars()}
            command = [sys.executable, "-P", "-m", *self.program]
            process = subprocess.Popen(command, env=children.environment() | mine)
            try:
                code = process.wait()
            except BaseException:  # this run is to stop
                process.send_signal(signal.SIGINT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_STOP_SECONDS)
                process.kill()
                raise
        return reports_of(session.get_custom_messages(), code)
