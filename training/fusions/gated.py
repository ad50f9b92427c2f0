"""A gate for each modality, which all of them open (Gated Multimodal Unit, Arevalo et al. 2017).

Shapes: B rows, N modalities, T tokens of each, D width.
"""

import torch
from torch import Tensor, nn

from training.fusions.base import Fusion
from training.layers import ModelShape


class GatedFusion(Fusion):
    """x_m = sum over n of z_n * h_n with h_n = tanh(W_n e_n) and z_n = sigmoid(Z_n [e_1, ..., e_N]), token by token
    (X = T)."""

    def __init__(self, modalities: int, shape: ModelShape) -> None:
        super().__init__(modalities, shape)
        width = shape.width
        self.hidden = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(modalities))
        self.gate = nn.Linear(modalities * width, modalities * width, bias=False)

    def forward(self, tokens_BNTD: Tensor, mask_BNT: Tensor) -> Tensor:
        x_NBTD = self.filled(tokens_BNTD, mask_BNT).transpose(0, 1)
        hidden_NBTD = torch.stack([layer(x) for layer, x in zip(self.hidden, x_NBTD, strict=True)]).tanh()
        gate_BTND = self.gate(torch.cat(list(x_NBTD), dim=-1)).sigmoid().unflatten(2, (len(self.hidden), -1))
        return torch.einsum("btnd,nbtd->btd", gate_BTND, hidden_NBTD)
