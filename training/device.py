"""Where models run: one setting of the machine, for training, featurizing and serving."""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

DEVICE = "TRIPTYCH_DEVICE"  # in the environment, since it is the machine's and no project's; child processes have it
_KINDS = ("auto", "cpu", "cuda", "mps")


def chosen_device() -> "torch.device":
    """The accelerator that there is, else the CPU, unless TRIPTYCH_DEVICE says which.

    Raises:
        ValueError: it says what there is not.
    """
    import torch

    asked = os.environ.get(DEVICE, "auto") or "auto"
    if asked not in _KINDS:
        raise ValueError(f"{DEVICE} is {asked!r}, expected one of {', '.join(_KINDS)}")
    there = torch.accelerator.current_accelerator(check_available=True)
    if asked == "cpu" or (asked == "auto" and there is None):
        return torch.device("cpu")
    if there is None or asked not in ("auto", there.type):
        has = "no accelerator that torch can use" if there is None else f"{there.type} only"
        raise ValueError(f"{DEVICE} is {asked!r}, and this machine has {has}: set it to auto or cpu")
    return there
