"""What benchmarks of language models share: one with random weights, and a clock of training steps."""

import time
from pathlib import Path
from typing import Any

import torch
import transformers as hf

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


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
