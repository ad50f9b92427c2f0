"""Starts the trainer as several processes on this machine, which train each model together."""

from dataclasses import dataclass

from assets.launchers.subprocess import SubprocessLauncher
from training.validation import FORBID_EXTRA, check


class TorchrunLauncher(SubprocessLauncher):
    """As PyTorch's torchrun; see `training.distributed`."""

    @dataclass(frozen=True)
    class Options:
        __pydantic_config__ = FORBID_EXTRA
        processes: int | None = None  # null: one for each GPU
        # Each has a part of the language model's layers only (`training.sharding`): less memory for more exchange.
        shard: bool = False

        def __post_init__(self) -> None:
            enough = self.processes is None or self.processes >= 1
            check(enough, "processes", self.processes, "null (one for each GPU) or at least 1")

    def __init__(self, options: Options) -> None:
        self.program = ("training.distributed", str(options.processes or 0), *(["shard"] if options.shard else []))
