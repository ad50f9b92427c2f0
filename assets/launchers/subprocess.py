"""Starts the trainer as a child of this process, on this machine."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg

from assets.launchers.base import Launcher

CODE = Path(__file__).resolve().parents[2]  # the checkout that holds `training`


class SubprocessLauncher(Launcher):
    """The child dies with its parent (`training.job` sees to it)."""

    def launch(self, context: dg.AssetExecutionContext, spec: Mapping[str, Any]) -> list[dict[str, Any]]:
        # The path is given explicitly and first, so a foreign package called `training` is never imported; -P keeps
        # the working directory off it.
        path = os.pathsep.join([str(CODE), *filter(None, [os.environ.get("PYTHONPATH")])])
        completed = dg.PipesSubprocessClient().run(
            context=context,
            command=[sys.executable, "-P", "-m", "training.job"],
            env={
                "PYTHONPATH": path,
                "TRIPTYCH_PARENT": str(os.getpid()),
                "TOKENIZERS_PARALLELISM": "false",
                # Threads that wait spin by default, which on a busy machine slows a small model down several times.
                "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
            },
            extras={"spec": dict(spec)},
        )
        return [dict(message) for message in completed.get_custom_messages()]
