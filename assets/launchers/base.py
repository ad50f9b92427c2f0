"""The contract of a launcher: what starts the trainer, which exchanges everything else through lake and MLflow."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import dagster as dg


class Launcher(ABC):
    """Runs `python -m training.job` somewhere and returns what it reported.

    The trainer speaks Dagster Pipes, and ends when the one that launched it does.
    """

    @abstractmethod
    def launch(self, context: dg.AssetExecutionContext, spec: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Blocks until the trainer ends.

        Args:
            spec: see `training.job`; plain JSON values.

        Returns:
            The trainer's reports, one per model it trained, in order.

        Raises:
            dagster.DagsterPipesExecutionError: the trainer failed; its output says why.
        """
