"""How a pretrained part of the model is trained: frozen, through LoRA, or whole; and at which learning rate.

A part that was adapted carries what was said of it (`part.adaptation`), so that the rest finds it in the model: what
stays still in training, parameter groups, what was not trained and lies elsewhere. LoRA is PEFT's (Hu et al. 2021).
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from training.validation import FORBID_EXTRA, Strings, check

if TYPE_CHECKING:
    from torch import Tensor, nn

_LORA = {"rank": 8, "alpha": None, "dropout": 0.0, "targets": ()}  # with their defaults


@dataclass(frozen=True, kw_only=True)
class Adaptation:
    __pydantic_config__ = FORBID_EXTRA
    train: Literal["frozen", "lora", "full"] = "full"
    learning_rate: float | None = None  # null: training.learning_rate
    rank: int = 8  # of LoRA's matrices, as alpha and dropout
    alpha: float | None = None  # what LoRA adds is multiplied by alpha / rank; null: 2 * rank
    dropout: float = 0.0
    targets: Strings = ()  # ends of the names of the layers that get LoRA: q_proj, attn.q_proj; none: all linear layers

    def __post_init__(self) -> None:
        check(self.train in ("frozen", "lora", "full"), "train", self.train, "frozen, lora or full")
        rate = self.learning_rate
        check(rate is None or rate > 0, "learning_rate", rate, "null or a positive number")
        check(rate is None or self.train != "frozen", "learning_rate", rate, "null where train is frozen")
        check(self.rank >= 1, "rank", self.rank, "at least 1")
        check(self.alpha is None or self.alpha > 0, "alpha", self.alpha, "null or a positive number")
        check(0 <= self.dropout < 1, "dropout", self.dropout, "0 up to (not including) 1")
        for name, default in _LORA.items() if self.train != "lora" else ():
            value = getattr(self, name)
            check(value == default, name, value, f"nothing where train is {self.train}: it is of train: lora")


def adapt(part: "nn.Module", adaptation: Adaptation, name: str) -> None:
    """Makes a part, in place, what is to be trained of it. Its weights may be anything yet, even on the meta device.

    LoRA draws from torch's global generator, and adds nothing to what the part says before it is trained.

    Args:
        name: of the part, as the project file says it, for errors: `model.llm`.

    Raises:
        ValueError: a target of LoRA is not there.
    """
    if adaptation.train != "full":
        part.requires_grad_(False)
    if adaptation.train == "lora":
        from peft import LoraConfig, inject_adapter_in_model
        from transformers.pytorch_utils import Conv1D

        layers = lora_layers(part, adaptation.targets, name)
        alpha = 2 * adaptation.rank if adaptation.alpha is None else adaptation.alpha
        config = LoraConfig(
            r=adaptation.rank,
            lora_alpha=alpha,  # type: ignore[arg-type] # a factor, whatever its type
            lora_dropout=adaptation.dropout,
            target_modules=layers,
            fan_in_fan_out=isinstance(part.get_submodule(layers[0]), Conv1D),  # a layer of another kind mends it, aloud
        )
        inject_adapter_in_model(config, part)
    part.adaptation = adaptation  # type: ignore[assignment]


def lora_layers(part: "nn.Module", targets: Collection[str], name: str) -> list[str]:
    """The names of the layers that get LoRA. Raises ValueError as `adapt`."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D  # GPT-2's linear layer

    head = getattr(part, "get_output_embeddings", lambda: None)()
    layers = {n: m for n, m in part.named_modules() if isinstance(m, nn.Linear | nn.Conv2d | Conv1D) and m is not head}
    linear = [n for n, layer in layers.items() if not isinstance(layer, nn.Conv2d)]
    found = {target: [n for n in layers if f".{n}".endswith(f".{target}")] for target in targets}
    missing = sorted(target for target, names in found.items() if not names)
    if missing or not (targets or linear):
        there = ", ".join(dict.fromkeys(n.rpartition(".")[2] for n in layers))
        wanted = f"targets {', '.join(missing)}" if missing else "targets (none: all linear layers)"
        raise ValueError(
            f"{name}: {wanted}: no layer is called so; LoRA can be added to {there or 'none of its layers'}"
        )
    return list(dict.fromkeys(n for names in found.values() for n in names)) if targets else linear


def adapted_parts(model: "nn.Module") -> Iterator[tuple[str, "nn.Module", Adaptation]]:
    """The parts of a model that `adapt` has made: name in the model, module, adaptation."""
    for name, module in model.named_modules():
        if (adaptation := vars(module).get("adaptation")) is not None:
            yield name, module, adaptation


def hold_still(model: "nn.Module") -> None:
    """After `model.train()`: what is not trained stays in eval mode, so that its dropout and batch norm do nothing.

    Layers that are computed twice to save memory have to know of the training; LoRA's own dropout is for it.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    for _, part, adaptation in adapted_parts(model):
        if adaptation.train != "full" and part.training:
            for name, module in part.named_modules():
                twice = isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing
                module.training = twice or ".lora_dropout." in f".{name}"


def base_names(model: "nn.Module") -> set[str]:
    """Names in the model's state dict of what is not trained, since it belongs to a frozen part or LoRA's base."""
    names = set()
    for name, part, adaptation in adapted_parts(model):
        if adaptation.train != "full":
            trained = {n for n, parameter in part.named_parameters(remove_duplicate=False) if parameter.requires_grad}
            names |= {f"{name}.{n}".removeprefix(".") for n in part.state_dict() if n not in trained}
    return names


def merge(model: "nn.Module") -> None:
    """Folds what LoRA learned into the weights of each part, in place: it says the same, and is as the base was."""
    from peft.tuners.lora import LoraLayer

    for _, part, adaptation in adapted_parts(model):
        if adaptation.train == "lora":
            layers = [(name, module) for name, module in part.named_modules() if isinstance(module, LoraLayer)]
            for name, layer in layers:
                layer.merge(safe_merge=True)
                part.set_submodule(name, layer.get_base_layer())
            part.requires_grad_(True)
            part.adaptation = Adaptation()  # type: ignore[assignment]


def halve(model: "nn.Module") -> "dict[nn.Parameter, Tensor]":
    """Makes bfloat16 of what autocast would make that of in every step: weights of linear layers and convolutions that
    are not trained, which need no float32 for an optimizer's small steps. What the model says under autocast stays the
    same, bit for bit. Returns the weights as they were, where they were.
    """
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    embeddings = {module.weight for module in model.modules() if isinstance(module, nn.Embedding)}
    whole = {}
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | Conv1D):
            for parameter in module.parameters(recurse=False):
                if not parameter.requires_grad and parameter not in embeddings:  # a head may share theirs
                    whole[parameter], parameter.data = parameter.data, parameter.data.bfloat16()
    return whole


def restore(whole: "Mapping[nn.Parameter, Tensor]") -> "dict[nn.Parameter, Tensor]":
    """Undoes `halve`; nothing is left to undo."""
    for parameter, data in whole.items():
        parameter.data = data.to(parameter.device)
    return {}


def parameter_groups(model: "nn.Module", decayed: Collection[str], weight_decay: float) -> list[dict[str, Any]]:
    """The optimizer's groups of what is trained: as transformers.Trainer makes them, with the learning rate of each
    part that has its own. The first group has the training's.

    Args:
        decayed: names of the parameters that get weight decay.
    """
    rates = {f"{name}.".lstrip("."): adaptation.learning_rate for name, _, adaptation in adapted_parts(model)}
    groups: dict[tuple[float | None, bool], list[nn.Parameter]] = {(None, True): [], (None, False): []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            rate = next((rate for prefix, rate in rates.items() if name.startswith(prefix)), None)
            groups.setdefault((rate, name in decayed), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": weight_decay if decays else 0.0, **({"lr": rate} if rate else {})}
        for (rate, decays), parameters in groups.items()
    ]
