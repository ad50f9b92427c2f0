"""Weights and activations of linear layers in 8 bits, by torchao.

Shapes: N results and K inputs of a layer.
"""

from typing import TYPE_CHECKING, Any

from training.variants.base import WeightsVariant, matrices, own_weights

if TYPE_CHECKING:
    from torch import Tensor

    from training.model import FusionModel


class Int8Variant(WeightsVariant):
    """Each row of a linear layer's weight is int8 (N, K) with a scale (N, 1), and so is each position of what the layer
    reads, at the moment it does (dynamic quantization). Other layers, and weights that an embedding shares, stay as
    they are.

    On a CPU torchao has no kernel of its own for this in eager mode: it multiplies by `torch._int_mm` and scales
    afterwards, which for small layers costs more than float32 does.
    """

    packages = ("torchao",)

    def activations(self) -> Any:
        """How what a layer reads is quantized; None: it is not."""
        from torchao.quantization.granularity import PerRow
        from torchao.quantization.quantize_.workflows.int8.int8_tensor import QuantizeTensorToInt8Kwargs

        return QuantizeTensorToInt8Kwargs(granularity=PerRow())

    def stored(self, model: "FusionModel") -> "dict[str, Tensor]":
        from torch import nn
        from torchao.quantization import Int8Tensor
        from torchao.quantization.granularity import PerRow

        tensors = own_weights(model)
        for name in matrices(model, (nn.Linear,)):
            weight = Int8Tensor.from_hp(tensors.pop(name).float(), PerRow())
            tensors |= {f"{name}/int8": weight.qdata, f"{name}/scale": weight.scale}
        return tensors

    def restore(self, model: "FusionModel", tensors: "dict[str, Tensor]") -> "dict[str, Tensor]":
        import torch
        from torch import nn
        from torchao.quantization import Int8Tensor

        layers, activations = matrices(model, (nn.Linear,)), self.activations()
        for name in self._names(tensors) & layers.keys():
            int8_NK, scale_N1 = tensors.pop(f"{name}/int8"), tensors.pop(f"{name}/scale")
            block = [1, int8_NK.shape[1]]
            weight = Int8Tensor(int8_NK, scale_N1, block, torch.float32, act_quant_kwargs=activations)
            layers[name].weight = nn.Parameter(weight, requires_grad=False)
        return tensors
