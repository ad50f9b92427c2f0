"""The term of FedProx: a silo is held near the weights that its round began with."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import TrainerCallback


class Proximal(TrainerCallback):
    """Adds to the gradients that of mu / 2 times the squared way from where the network is now."""

    def __init__(self, network: Any, mu: float) -> None:
        self._network, self._mu = network, mu
        self._began: Mapping[str, Tensor] = {n: p.detach().clone() for n, p in self._trained()}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.pull()

    def pull(self) -> None:
        for name, parameter in self._trained():
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach() - self._began[name].to(parameter.device), alpha=self._mu)

    def _trained(self) -> list[tuple[str, Any]]:
        return [(name, p) for name, p in self._network.named_parameters() if p.requires_grad]
