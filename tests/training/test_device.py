"""Where models run, by one setting of the machine."""

import pytest
import torch

from training.device import DEVICE, chosen_device


def test_the_environment_says_where_models_run(monkeypatch):
    there = torch.accelerator.current_accelerator(check_available=True)
    monkeypatch.delenv(DEVICE, raising=False)
    assert chosen_device() == (there or torch.device("cpu"))
    monkeypatch.setenv(DEVICE, "cpu")
    assert chosen_device() == torch.device("cpu")
    monkeypatch.setenv(DEVICE, "gpu")
    with pytest.raises(ValueError, match="TRIPTYCH_DEVICE is 'gpu', expected one of auto, cpu, cuda, mps"):
        chosen_device()
    absent = next(kind for kind in ("mps", "cuda") if there is None or kind != there.type)
    monkeypatch.setenv(DEVICE, absent)
    with pytest.raises(ValueError, match=f"TRIPTYCH_DEVICE is '{absent}', and this machine has"):
        chosen_device()
