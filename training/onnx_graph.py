"""The fused model as an ONNX graph (`training.variants.onnx`): without a step whose shapes depend on what rows have.

Shapes: B rows, N modalities, S positions, T soft tokens of each, X soft tokens of x_m, C logits, D width.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from training.model import FusionModel
from training.outputs.linear import with_linear
from training.readings import PromptTokens

_OPSET = 18


class Graph(nn.Module):
    """What a model says of a batch: logits (B, C), and the mean of each row's soft tokens (B, D)."""

    def __init__(self, model: FusionModel, names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.names = model, tuple(names)
        self.is_mixed = model.linear is not None and bool(model.linear.share.any())

    def forward(self, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        batch = dict(zip(self.names, tensors, strict=True))
        model, present_BN = self.model, batch["present"]
        tokens_BNTD, mask_BNT = self.encode(batch)
        prompt = PromptTokens(*map(batch.get, ("prompt_ids", "prompt_mask", "column_ids", "column_mask")))
        x_m, soft_BX = model.fuse(tokens_BNTD, mask_BNT), model.fusion.soft_mask(mask_BNT)
        logits = model.output.logits(model, *model.context(x_m, *prompt, soft_BX), None)
        if self.is_mixed:
            assert model.linear is not None
            of = dict(zip(model.config.modalities, present_BN.unbind(1), strict=True))
            logits = with_linear(logits, *model.linear(*model.linear.pooled(of, batch)))
        read_BX1 = (torch.ones_like(x_m[..., 0]) if soft_BX is None else soft_BX.to(x_m.dtype))[..., None]
        return logits.float(), (x_m * read_BX1).sum(1) / read_BX1.sum(1).clamp(min=1)

    def encode(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """As `FusionModel.encode`, of all rows: those that lack a modality have positions that are read for real, and a
        mask (B, N, T) that says there is nothing. Encoders give real tokens alone, as all of ours do."""
        model, tokens, masks = self.model, list[Tensor](), list[Tensor]()
        for n, modality in enumerate(model.config.modalities):
            if modality == model.prompt:
                values, mask_BS = model.get_input_embeddings()(batch["prompt_ids"]), batch["prompt_mask"]
            else:
                values, mask_BS = batch[modality], batch.get(f"{modality}_mask")  # type: ignore[assignment]
            has_B1 = batch["present"][:, n, None]
            encoded, real_BT = model.encoders[modality](values, None if mask_BS is None else mask_BS | ~has_B1)
            tokens.append(model.projectors[modality](encoded))
            masks.append(has_B1.expand(-1, real_BT.shape[1]))
        return torch.stack(tokens, 1), torch.stack(masks, 1)


def export(model: FusionModel, batch: dict[str, Tensor], path: Path) -> None:
    """Writes the graph of a model in eval mode, whose inputs are called as the tensors of a batch.

    By tracing: torch's newer exporter takes a hundred times as long for the same graph. What a trace takes for constant
    and is not, `training.variants.onnx` finds by asking the graph other batches.

    Args:
        batch: of two rows or more, that have all modalities.

    Raises:
        ValueError: the exporter knows no graph of one of its layers.
    """
    sizes = {name: {at: f"{name}_{at}" if at else "rows" for at in moving(name, x)} for name, x in batch.items()}
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter(
                "ignore"
            )  # of the exporter's age, and of each branch that is the same for all batches
            torch.onnx.export(
                Graph(model, list(batch)).eval(),
                tuple(batch.values()),
                str(path),
                dynamo=False,
                opset_version=_OPSET,
                input_names=list(batch),
                output_names=["logits", "x_m"],
                dynamic_axes=sizes | {"logits": {0: "rows"}, "x_m": {0: "rows"}},
            )
    except Exception as error:  # whatever the exporter meets
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise ValueError(f"the model cannot be written as ONNX ({why})") from error


def moving(name: str, tensor: Tensor) -> list[int]:
    """The dimensions of a tensor of a batch that are others in other batches: rows, and positions, frames or terms."""
    if name == "present" or tensor.dim() == 4:  # pictures
        return [0]
    return [0, 2] if name.startswith("column_") else [0, 1]
