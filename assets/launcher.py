"""Starts the trainer: one child process that speaks Dagster Pipes and exchanges all else through lake and MLflow."""

import os
import sys
from collections.abc import Mapping
from typing import Any, Protocol

import dagster as dg

from training import children


class Launcher(Protocol):
    """Runs `python -m training.job` somewhere and returns what it reported."""

    def launch(self, context: dg.AssetExecutionContext, spec: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Blocks until the trainer ends.

        Args:
            spec: see `training.job`; plain JSON values.

        Returns:
            The trainer's reports, one per model it trained, in order.

        Raises:
            dagster.DagsterPipesExecutionError: the trainer failed; its output says why.
        """
        ...


class SubprocessLauncher:
    """A child of this process, on this machine. It dies with its parent (`training.job` sees to it)."""

    def launch(self, context: dg.AssetExecutionContext, spec: Mapping[str, Any]) -> list[dict[str, Any]]:
        completed = dg.PipesSubprocessClient().run(
            context=context,
            command=[sys.executable, "-P", "-m", "training.job"],
            env=children.environment() | {children.PARENT: str(os.getpid())},
            extras={"spec": dict(spec)},
        )
        return [dict(message) for message in completed.get_custom_messages()]
