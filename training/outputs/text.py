"""The answer is text that the language model writes.

Shapes: B rows, S positions of the context, A answer tokens, D width of the language model, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from training.outputs.base import AnsweringModel
from training.outputs.string import StringOutput

if TYPE_CHECKING:
    from torch import Tensor
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

    from training.settings import ModelSettings

_BYTES = 4  # of a token, about
_CACHED = 50_000  # labels whose tokens are kept: they recur over rows and epochs


class TextOutput(StringOutput):
    """Generated greedily, token by token, up to `model.max_new_tokens`. Targets are answer tokens and the end of
    sequence (B, A), padded by -100; logits (B, A, V) are those of teacher forcing, so they need targets."""

    reads_answers = True

    def __init__(self, fitted: Mapping[str, Any]) -> None:
        super().__init__(fitted)
        self._tokens: dict[str, list[int]] = {}

    def is_class(self, labels: Mapping[str, int]) -> bool:
        return 2 * len(labels) <= sum(labels.values())  # else they are texts, which need not recur

    def doubt(self, label: str, settings: "ModelSettings") -> str | None:
        """An estimate: the tokenizer, which `fit` asks, is fitted later or takes long to load."""
        needed, most = max(len(label.split()), len(label.encode()) // _BYTES), settings.max_new_tokens
        if needed <= most:
            return None
        return f"has about {needed} tokens, and answers end after model.max_new_tokens ({most}): set it higher"

    def fit(
        self, labels: Sequence[str], tokenizer: "PreTrainedTokenizerBase", settings: "ModelSettings"
    ) -> dict[str, Any]:
        """Nothing; refuses a label that would be cut off before it is whole (the end of sequence needs no room)."""
        distinct = sorted({label for label in labels if label})
        longest = max(distinct, key=lambda label: len(self._encoded(label, tokenizer)), default="")
        needed, most = len(self._encoded(longest, tokenizer)), settings.max_new_tokens
        if needed > most:
            raise ValueError(
                f"the training label {longest[:80]!r} has {needed} tokens, and answers end after "
                f"model.max_new_tokens ({most}): set it to at least {needed}"
            )
        return {}

    def targets(self, labels: Sequence[str], tokenizer: "PreTrainedTokenizerBase") -> "Tensor":
        from training.padding import padded

        end = tokenizer.eos_token_id
        assert end is not None
        return padded([[*self._encoded(label, tokenizer), end] for label in labels], -100)[0]

    def language_model(self) -> Any:
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM

    def logits(
        self, model: AnsweringModel, embeddings_BSD: "Tensor", mask_BS: "Tensor", targets: "Tensor | None"
    ) -> "Tensor":
        import torch

        if targets is None:
            raise ValueError("labels is None, expected answer tokens: use `answer` to generate text")
        answers, real = targets.clamp(min=0), targets != -100
        answers_BAD = model.get_input_embeddings()(answers[:, :-1])
        embeddings_BSD = torch.cat([embeddings_BSD, answers_BAD.to(embeddings_BSD.dtype)], dim=1)
        mask_BS = torch.cat([mask_BS, real[:, :-1]], dim=1)
        return model.read(embeddings_BSD, mask_BS, logits_to_keep=targets.shape[1]).logits

    def answers(
        self,
        model: AnsweringModel,
        embeddings_BSD: "Tensor",
        mask_BS: "Tensor",
        tokenizer: "PreTrainedTokenizerBase",
    ) -> list[str]:
        ids = model.llm.generate(
            inputs_embeds=embeddings_BSD,
            attention_mask=mask_BS.long(),
            do_sample=False,
            num_beams=1,
            max_new_tokens=model.config.max_new_tokens,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        return [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]

    def _encoded(self, label: str, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
        from training.tokenizer import encode

        if (ids := self._tokens.get(label)) is None:
            ids = encode(tokenizer, label, around=False) if label else []
            if len(self._tokens) < _CACHED:
                self._tokens[label] = ids
        return ids
