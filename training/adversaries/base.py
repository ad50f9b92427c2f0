"""The contract of an adversary: the small change of what a model reads that makes its answers most wrong.

Shapes: C contents of a modality, as the encoders get them; what is changed of one has any shape behind.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from training.adversaries import options as options_module

if TYPE_CHECKING:
    from training.model import FusionModel

NEARLY_NOTHING = 1e-12


class Changes:
    """What is added to what each modality has at the place that is attacked; at first nothing."""

    def __init__(self) -> None:
        self.of: dict[str, Tensor] = {}  # modality -> like its values, with a gradient
        self.lengths: dict[str, Tensor] = {}  # modality -> (C, 1, ...), of the values that were there

    def added(self, modality: str, values: Tensor) -> Tensor:
        """The values with their change."""
        if modality not in self.of:
            self.of[modality] = torch.zeros_like(values, requires_grad=True)
            self.lengths[modality] = length(values.detach())
        return values + self.of[modality]


class Adversary:
    """Changes every modality of every row at once, each by at most `epsilon` of its own length (L2).

    A row's change depends on that row's loss alone, as far as rows do not meet in the model. The text that the language
    model reads itself as its prompt stays as it is.
    """

    Options: ClassVar = options_module.Options

    def __init__(self, options: Any) -> None:
        self.on, self.epsilon, self.weight = options.on, options.epsilon, options.weight

    @contextmanager
    def at(self, model: "FusionModel") -> Iterator[Changes]:
        """While it lasts, the model reads with the changes. All that it reads is one batch."""
        changes = Changes()
        handles = []
        for modality, encoder in model.encoders.items():
            read = _Place(changes, modality)
            if self.on == "inputs":
                handles.append(encoder.register_forward_pre_hook(read.before_encoder))
            handles.append(model.projectors[modality].register_forward_hook(read.behind_projector))
        try:
            yield changes
        finally:
            for handle in handles:
                handle.remove()

    def loss(self, model: "FusionModel", batch: Mapping[str, Tensor], changes: Changes, plain: Tensor) -> Tensor:
        """That of the batch with the worst changes, which then are in `changes`.

        Args:
            plain: the loss of the batch as it is, read with `changes` (of nothing).
        """
        self.worsen(model, batch, changes, plain)
        return model(**batch).loss

    def worsen(self, model: "FusionModel", batch: Mapping[str, Tensor], changes: Changes, plain: Tensor) -> None:
        """Sets the changes; see `loss`."""
        raise NotImplementedError


def gradients(loss: Tensor, changes: Changes) -> dict[str, Tensor]:
    """Of the loss, by modality; of length 1 for each content, or 0 where the loss does not know it."""
    found = torch.autograd.grad(loss, list(changes.of.values()), retain_graph=True, allow_unused=True)
    return {
        modality: torch.zeros_like(change) if slope is None else slope / length(slope).clamp(min=NEARLY_NOTHING)
        for (modality, change), slope in zip(changes.of.items(), found, strict=True)
    }


def length(values: Tensor) -> Tensor:
    """(C, ...) to the L2 norm of each, (C, 1, ...)."""
    return values.float().flatten(1).norm(dim=1).view(-1, *[1] * (values.dim() - 1))


class _Place:
    """Where one modality is changed: what its encoder reads, or where that has no values, what becomes of it."""

    def __init__(self, changes: Changes, modality: str) -> None:
        self.changes, self.modality, self.is_done = changes, modality, False

    def before_encoder(self, _: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        values = given[0]
        self.is_done = values is not None and values.is_floating_point()
        return (self.changes.added(self.modality, values), *given[1:]) if self.is_done else given

    def behind_projector(self, _: nn.Module, __: Any, tokens: Tensor) -> Tensor:
        return tokens if self.is_done else self.changes.added(self.modality, tokens)
