"""What benchmarks of language models share: one with random weights, and what is measured of training steps."""

import time
from pathlib import Path
from typing import Any

import torch
import transformers as hf

from training.model import FusionModel
from training.tokenizer import fit_tokenizer


def write_llama(folder: Path, text: str, **shape: Any) -> int:
    """Writes a language model of Llama's kind with random weights, in bfloat16, as they are stored, and a tokenizer
    fitted on `text`; returns its parameters. `shape` is LlamaConfig's."""
    tokenizer = fit_tokenizer([text] * 2, 1000)
    ends = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    torch.manual_seed(0)
    model: Any = hf.LlamaForCausalLM(hf.LlamaConfig(**shape, **ends)).to(torch.bfloat16)  # type: ignore[arg-type]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return sum(p.numel() for p in model.parameters())


class StepClock(hf.TrainerCallback):
    """When each step begins, all work before it done."""

    def __init__(self) -> None:
        self.begins: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        synchronize()
        self.begins.append(time.perf_counter())


class Reads:
    """Counts what the language model of a network reads in each step, without waiting for the device: real tokens, and
    positions with those of padding."""

    def __init__(self, network: FusionModel) -> None:
        self.tokens: list[torch.Tensor] = []
        self.positions: list[int] = []
        read = network.read

        def counted_read(embeddings: torch.Tensor, mask: torch.Tensor, **options: Any) -> Any:
            self.tokens.append(mask.sum())
            self.positions.append(0)
            return read(embeddings, mask, **options)

        def count(_llm: Any, _arguments: Any, options: dict[str, Any]) -> None:
            if self.positions:  # it is tried out before the first step
                self.positions[-1] += options["inputs_embeds"].shape[:2].numel()

        network.read = counted_read  # type: ignore[method-assign]
        network.llm.register_forward_pre_hook(count, with_kwargs=True)

    def padding(self, steps: range) -> float:
        """The share of the positions that are none."""
        return 1 - sum(float(self.tokens[n]) for n in steps) / sum(self.positions[n] for n in steps)


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
