"""Starts the trainer as a child of this process, on this machine."""

import os
import sys
from collections.abc import Mapping
from typing import Any

import dagster as dg

from assets.launchers.base import Launcher
from training import children


class SubprocessLauncher(Launcher):
    """The child dies with its parent (`training.job` sees to it)."""

    def launch(self, context: dg.AssetExecutionContext, spec: Mapping[str, Any]) -> list[dict[str, Any]]:
        completed = dg.PipesSubprocessClient().run(
            context=context,
            command=[sys.executable, "-P", "-m", "training.job"],
            env=children.environment() | {children.PARENT: str(os.getpid())},
            extras={"spec": dict(spec)},
        )
        return [dict(message) for message in completed.get_custom_messages()]
