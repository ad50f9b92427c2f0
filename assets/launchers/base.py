"""The contract of a launcher: what starts the trainer, which exchanges everything else through lake and MLflow."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from training.children import how_ended

if TYPE_CHECKING:  # commands that launch nothing read the options
    import dagster as dg


class Launcher(ABC):
    """Runs `python -m training.job` somewhere and returns what it reported.

    The trainer speaks Dagster Pipes, and ends when the one that launched it does.
    """

    @abstractmethod
    def launch(self, context: "dg.AssetExecutionContext", spec: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Blocks until the trainer ends.

        Args:
            spec: see `training.job`; plain JSON values.

        Returns:
            The trainer's reports, one per model it trained, in order.

        Raises:
            dagster.Failure: the trainer failed; its description says why, in the trainer's own words (`reports_of`).
        """


def reports_of(messages: Sequence[Mapping[str, Any]], code: int) -> list[dict[str, Any]]:
    """The reports among the custom messages that a trainer sent over Pipes until it ended with an exit code.

    Raises:
        dagster.Failure: it failed; in its last words, or by its exit code where it had no time for any.
    """
    import dagster as dg

    said = [str(message["error"]) for message in messages if "error" in message]
    if said or code != 0:
        raise dg.Failure(said[-1] if said else f"the trainer {how_ended(code)}", metadata={"exit_code": code})
    return [dict(message) for message in messages]
