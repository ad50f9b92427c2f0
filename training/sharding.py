"""The language model's layers parted among the processes that train it together (FSDP: PyTorch's `fully_shard`).

Of each layer a process holds its part of the weights, gradients and optimizer state, and has it whole only while it is
at work. Every batch needs all of these layers in each process. The rest of the model need not be: where a row lacks a
modality, its encoder rests. So each process has the rest whole, and its gradients are averaged after the last backward
pass of a step, as DistributedDataParallel does. A checkpoint's tensors are whole; its optimizer has other groups.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from transformers.modeling_layers import GradientCheckpointingLayer

from training.distributed import processes
from training.trainer import Trainer


class ShardingTrainer(Trainer):
    """The Trainer of a model of whose language model each process has a part of each layer."""

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            network: Any = self.model
            shard(network, network.llm)  # not before, since a checkpoint is read into a model that is whole
            optimizer = super().create_optimizer(model)
            optimizer.param_groups[:] = [
                {**g, "params": p} for g in optimizer.param_groups for p in _apart(g["params"])
            ]
            whole_state(optimizer)
        assert self.optimizer is not None
        return self.optimizer

    def _wrap_model(self, model: nn.Module, training: bool = True, dataloader: Any = None) -> nn.Module:
        return model if isinstance(model, Together) else Together(model, self.accelerator.autocast)

    def training_step(self, model: nn.Module, *inputs: Any, **options: Any) -> Tensor:
        loss = super().training_step(model, *inputs, **options)
        if self.accelerator.sync_gradients:
            average_gradients(list(model.parameters()))
        return loss

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        self.clipped = self.clipped or list(model.parameters())
        return clip_gradients(self.clipped, self.args.max_grad_norm)

    def evaluate(self, *arguments: Any, **options: Any) -> dict[str, float]:
        with whole_layers(self.accelerator.unwrap_model(self.model)):
            return super().evaluate(*arguments, **options)

    def kept_weights(self) -> dict[str, Tensor]:
        """What is saved of the model, whole; all processes ask for it at once."""
        model: Any = self.accelerator.unwrap_model(self.model)
        left_out = set(model._keys_to_ignore_on_save or ())
        return whole({name: x for name, x in model.state_dict().items() if name not in left_out})

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, self.kept_weights())

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.args.should_save:
            assert self.optimizer is not None
            self.optimizer.state_dict()  # the first process puts it together with all of them
        super()._save_optimizer_and_scheduler(output_dir)

    def _load_best_model(self) -> None:
        """`training.train.fit` reads it, into a model that is whole."""


def shard(model: nn.Module, llm: nn.Module) -> None:
    """Parts the layers of a model's language model, in place: their parameters are other ones afterwards. All processes
    start with the first one's weights.

    Raises:
        ValueError: the language model has no layers of a kind that is known.
    """
    layers = [module for module in llm.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise ValueError("launcher.shard is true, and model.llm has no layers that could be parted: set it to false")
    for tensor in (*model.parameters(), *model.buffers()):
        torch.distributed.broadcast(tensor.data, 0)
    mesh = init_device_mesh(next(llm.parameters()).device.type, (processes(),))
    for layer in layers:
        # Each layer is a root of its own, and roots would stay whole until the backward pass.
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)


class Together(nn.Module):
    """What the Trainer calls, in the place of DistributedDataParallel."""

    def __init__(self, model: nn.Module, autocast: Any) -> None:
        super().__init__()
        self.module, self.autocast = model, autocast

    def forward(self, **inputs: Any) -> Any:
        with self.autocast():
            return self.module(**inputs)


def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Over the processes, of what each one has whole. What none of them needed has no gradient, as in one process."""
    whole = [p for p in parameters if p.requires_grad and not isinstance(p, DTensor)]
    if not whole:
        return
    needed = torch.tensor([p.grad is not None for p in whole], dtype=torch.float32, device=whole[0].device)
    flat = [needed, *((torch.zeros_like(p) if p.grad is None else p.grad).float().flatten() for p in whole)]
    sums = torch.cat(flat)
    torch.distributed.all_reduce(sums)
    needed, *gradients = sums.split([len(whole), *(p.numel() for p in whole)])
    for parameter, times, gradient in zip(whole, needed.tolist(), gradients, strict=True):
        mean = (gradient / processes()).view_as(parameter).to(parameter.dtype)
        parameter.grad = mean if times else None


def clip_gradients(parameters: Sequence[nn.Parameter], most: float) -> Tensor:
    """As `torch.nn.utils.clip_grad_norm_`, which takes no tensors of both kinds at once."""
    kinds = [[p for p in part if p.grad is not None] for part in _apart(parameters)]
    norms = [get_total_norm([p.grad for p in part if p.grad is not None]) for part in kinds if part]
    norm = torch.stack([n.full_tensor() if isinstance(n, DTensor) else n for n in norms]).norm()
    for part in kinds:
        clip_grads_with_norm_(part, most, norm)
    return norm


def _apart(parameters: Sequence[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Those that each process has whole, and those that are parted."""
    parted = [isinstance(p, DTensor) for p in parameters]
    return [[p for p, is_parted in zip(parameters, parted, strict=True) if is_parted == n] for n in (False, True)]


def whole(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """With what is parted put together, which all processes do at once."""
    return {name: x.full_tensor().cpu() if isinstance(x, DTensor) else x for name, x in tensors.items()}


def whole_state(optimizer: torch.optim.Optimizer) -> None:
    """From now on the optimizer's state dict is that of one process, as it is saved and read; all processes ask for it
    at once."""

    def together(_optimizer: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
        return {**state_dict, "state": {n: whole(state) for n, state in state_dict["state"].items()}}

    def parted(optimizer: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        states = {
            n: {name: _part(x, parameters[n]) for name, x in state.items()} for n, state in state_dict["state"].items()
        }
        return {**state_dict, "state": states}

    optimizer.register_state_dict_post_hook(together)
    optimizer.register_load_state_dict_pre_hook(parted)


def _part(value: Any, parameter: nn.Parameter) -> Any:
    """This process's part of what the optimizer remembers of each number of a parted parameter."""
    if not isinstance(parameter, DTensor) or value.shape != parameter.shape:
        return value
    value = value.to(parameter.device)
    return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)


@contextmanager
def whole_layers(model: nn.Module) -> Iterator[None]:
    """Each process has all layers whole meanwhile, since they answer other rows, in as many steps as these need; and
    buffers, as those of batch normalisation, are the first one's, as with DistributedDataParallel."""
    for buffer in model.buffers():
        torch.distributed.broadcast(buffer, 0)
    layers = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for layer in layers:
        layer.unshard()
        layer.set_reshard_after_forward(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.reshard()
            layer.set_reshard_after_forward(True)
