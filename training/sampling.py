"""Texts that are drawn, token by token, instead of being the likeliest: the same for the same row, whatever stands
beside it in a batch.

Shapes: B rows, V vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from training.outputs.base import AnsweringModel
from training.settings import GenerationSettings


def sampled(model: AnsweringModel, seeds_B: Tensor | None) -> AnsweringModel:
    """The model, which draws what it writes where rows have seeds."""
    return model if seeds_B is None else SampledModel(model, seeds_B)


class SampledModel(AnsweringModel):
    """A model as an output sees it whose language model draws each next token."""

    def __init__(self, model: AnsweringModel, seeds_B: Tensor) -> None:
        self.model, self.seeds_B = model, seeds_B
        self.llm, self.head, self.config = self, model.head, model.config

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def read(self, embeddings_BSD: Tensor, mask_BS: Tensor, **options: Any) -> Any:
        return self.model.read(embeddings_BSD, mask_BS, **options)

    def generate(self, **options: Any) -> Any:
        """The language model's own, which takes the likeliest token of what `_Drawn` makes of it."""
        chosen = choosing(GenerationSettings(**self.config.generation), self.seeds_B)
        processors = LogitsProcessorList([*options.pop("logits_processor", ()), *chosen])
        return self.model.llm.generate(**options, logits_processor=processors)


def choosing(how: GenerationSettings, seeds_B: Tensor) -> LogitsProcessorList:
    """What of the logits of the next token of each row makes those whose likeliest token is the one that is drawn."""
    likely: list[Callable[..., Tensor]] = []
    likely += [TemperatureLogitsWarper(float(how.temperature))] if how.temperature != 1 else []
    likely += [TopKLogitsWarper(how.top_k)] if how.top_k else []
    likely += [TopPLogitsWarper(float(how.top_p))] if how.top_p < 1 else []
    return LogitsProcessorList([*likely, _Drawn(seeds_B)])


class Likeliest(LogitsProcessor):
    """Notes of each step how probable the likeliest token is, and changes nothing.

    No function: transformers asks for the parameters of each call, and those of `__call__` of a function are parsed
    from text every time, which took as long as a small model.
    """

    def __init__(self, temperatures: Sequence[float]) -> None:
        self.temperatures = temperatures
        self.logs_GB: list[Tensor] = []  # of each step, the log-probability by each temperature

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        of_G = [(scores.float() / t).log_softmax(-1).amax(-1) for t in self.temperatures]
        self.logs_GB.append(torch.stack(of_G))
        return scores


class _Drawn(LogitsProcessor):
    """Adds Gumbel noise, with which the largest logit is a draw from their softmax (Maddison et al. 2014)."""

    def __init__(self, seeds_B: Tensor) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds_B.tolist()]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        size = scores.shape[1]
        noise_BV = torch.stack([-torch.empty(size).exponential_(generator=draw).log() for draw in self._generators])
        return scores.float() + noise_BV.to(scores.device)
