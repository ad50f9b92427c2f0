"""Several processes that train one model together, one for each GPU, as torchrun starts them.

    python -P -m training.distributed PROCESSES        # each runs training.job; 0: one for each GPU there is
    python -P -m training.distributed PROCESSES shard  # which part the language model's layers: `training.sharding`

All do the same, each on its part of every batch (PyTorch's DistributedDataParallel). The first one alone speaks: Pipes,
MLflow, checkpoints and answers are its. `training.batch_size` is that of all together, so what a step is hardly depends
on how many they are: README says what does.
"""

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from training.children import PARENT, die_with_parent

if TYPE_CHECKING:
    from torch import Tensor

SHARD = "TRIPTYCH_SHARD"  # in the environment of processes that part the language model's layers


def processes() -> int:
    """How many train together, this one included."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def number() -> int:
    """Of this process, from 0."""
    return int(os.environ.get("RANK", "0"))


def is_first() -> bool:
    return number() == 0


def shards() -> bool:
    """Whether they part layers of the language model among them."""
    return processes() > 1 and SHARD in os.environ


def part_of(batch_size: int) -> int:
    """Rows of a batch that each process takes. Raises ValueError where that is no whole number."""
    share, rest = divmod(batch_size, processes())
    if rest:
        raise ValueError(
            f"training.batch_size is {batch_size}, and {processes()} processes share each batch: set it to a multiple"
        )
    return share


def first_says(work: Callable[[], Any]) -> Any:
    """What `work` returns in the first process, which alone does it; the others wait for it."""
    if processes() == 1:
        return work()
    import torch

    said = [work() if is_first() else None]
    torch.distributed.broadcast_object_list(said)
    return said[0]


def gathered(values: list[Any]) -> list[Any]:
    """The values of all processes, those of the first one first."""
    if processes() == 1:
        return values
    import torch

    parts: list[Any] = [None] * processes()
    torch.distributed.all_gather_object(parts, values)
    return [value for part in parts for value in part]


def beside(rows: "Tensor") -> "Tensor":
    """Those of all processes, of which each has as many, those of the first one first.

    Who makes a loss of them learns from its own rows alone, and that is all that can be learned of these, since each
    process has the whole loss; the mean over processes, which is what they learn, is that of one process.
    """
    if processes() == 1:
        return rows
    import torch

    parts = [torch.empty_like(rows) for _ in range(processes())]
    torch.distributed.all_gather(parts, rows.detach().contiguous())
    if rows.requires_grad:
        parts[number()] = mine = rows.view_as(rows)  # so that the hook meets the gradient of this loss alone
        mine.register_hook(lambda gradient: gradient * processes())
    return torch.cat(parts)


def join() -> None:
    """At the start: each process has a GPU of its own, where there are any."""
    import torch

    if processes() > 1 and torch.cuda.is_available():
        if processes() > (there := torch.cuda.device_count()):
            raise ValueError(f"launcher.processes is {processes()}, and this machine has {there} GPUs: set it to that")
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))


def leave() -> None:
    """At the end of the work."""
    if processes() > 1:
        import torch

        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def main() -> None:
    """Ends as the first process that failed did, and the others with it."""
    import torch
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    if parent := os.environ.get(PARENT):
        die_with_parent(int(parent))
        os.setsid()  # as `training.job`
        os.environ[PARENT] = str(os.getpid())
    count = int(sys.argv[1]) or max(1, torch.cuda.device_count())
    os.environ |= dict.fromkeys([SHARD] * ("shard" in sys.argv[2:]), "1")
    try:
        run.main(["--standalone", "--nproc-per-node", str(count), "-m", "training.job"])
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        print(error, file=sys.stderr)
        sys.exit(failure.exitcode if failure.exitcode >= 0 else 128 - failure.exitcode)


if __name__ == "__main__":
    main()
