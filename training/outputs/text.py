"""The answer is text that the language model writes.

Shapes: B rows, S positions of the context, A answer tokens, D width of the language model, V vocabulary.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from training.label_metrics import BALANCED_ACCURACY, ECE, MACRO_F1
from training.metrics import ACCURACY, exact_match
from training.outputs.base import AnsweringModel, Asked
from training.outputs.string import StringOutput, finite
from training.prompt import answer_lead
from training.records import Answer
from training.settings import GenerationSettings
from training.text_metrics import CER, ROUGE_L, TOKEN_F1, WER

if TYPE_CHECKING:
    from torch import Tensor
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

    from training.settings import ModelSettings

_LEAST_CHANCE = 1e-6  # one row shall not outweigh all others
_BYTES = 4  # of a token, about
_CACHED = 50_000  # labels whose tokens are kept: they recur over rows and epochs


class TextOutput(StringOutput):
    """Generated token by token, up to `model.max_new_tokens`; greedily unless `model.generation` says otherwise.
    Targets are answer tokens and the end of sequence (B, A), padded by -100; logits (B, A, V) are those of teacher
    forcing, so they need targets."""

    metrics = (ACCURACY, TOKEN_F1, ROUGE_L, CER, WER, BALANCED_ACCURACY, MACRO_F1, ECE)
    share = right = ACCURACY
    reads_answers = True

    def __init__(self, fitted: Mapping[str, Any]) -> None:
        super().__init__(fitted)
        self.lead = str(fitted.get("lead", ""))  # what answers begin with, before the label
        self.entropy = float(fitted.get("entropy", 0.0))  # nats, of the tokens of training labels
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
        self, labels: Sequence[str], tokenizer: "PreTrainedTokenizerBase | None", settings: "ModelSettings"
    ) -> dict[str, Any]:
        """lead, where the prompt says one, and entropy; refuses a label that would be cut off before it is whole (the
        end of sequence needs no room)."""
        self.lead = answer_lead(settings.prompt)
        lead = {"lead": self.lead} if self.lead else {}
        if tokenizer is None:
            return lead
        distinct = Counter(label for label in labels if label)
        longest = max(sorted(distinct), key=lambda label: len(self._encoded(label, tokenizer)), default="")
        needed, most = len(self._encoded(longest, tokenizer)), settings.max_new_tokens
        if needed > most:
            raise ValueError(
                f"the training label {longest[:80]!r} has {needed} tokens, and answers end after "
                f"model.max_new_tokens ({most}): set it to at least {needed}"
            )
        return {
            **lead,
            "entropy": _entropy({(*self._encoded(label, tokenizer), -1): n for label, n in distinct.items()}),
        }

    @property
    def loss_of_nothing(self) -> float:
        return self.entropy or 1.0

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
        if targets is None:
            raise ValueError("labels is None, expected answer tokens: use `answer` to generate text")
        sequence = self.with_answers(model, embeddings_BSD, mask_BS, targets)
        return model.read(*sequence, logits_to_keep=targets.shape[1]).logits

    def with_answers(
        self, model: AnsweringModel, embeddings_BSD: "Tensor", mask_BS: "Tensor", targets_BA: "Tensor"
    ) -> "tuple[Tensor, Tensor]":
        """The context and behind it the answers, but for their ends (B, S + A - 1)."""
        import torch

        answers, real = targets_BA.clamp(min=0), targets_BA != -100
        answers_BAD = model.get_input_embeddings()(answers[:, :-1])
        embeddings_BSD = torch.cat([embeddings_BSD, answers_BAD.to(embeddings_BSD.dtype)], dim=1)
        return embeddings_BSD, torch.cat([mask_BS, real[:, 1:]], dim=1)  # what nothing follows need not be read

    def loss(self, logits: "Tensor", targets: "Tensor", smoothing: float = 0.0) -> "Tensor":
        real_BA = targets != -100  # a large vocabulary takes long, and most of a batch may be padding
        return super().loss(logits[real_BA], targets[real_BA], smoothing)

    def surprises(self, asked: Asked, labels: Sequence[str], temperatures: Sequence[float]) -> "Tensor":
        """Of what is generated being right, or not: single tokens of a text may be sure where the whole is not."""
        import torch

        texts_BK, chances_GBK = self._generated(asked, temperatures)
        right = [exact_match(label, texts[0]) for label, texts in zip(labels, texts_BK, strict=True)]
        right_B, chances_GB = torch.tensor(right, device=chances_GBK.device), chances_GBK[..., 0]
        return -torch.where(right_B, chances_GB, 1 - chances_GB).clamp(min=_LEAST_CHANCE).log()

    def scored_answers(self, asked: Asked) -> list[Answer]:
        """Probabilities are of the tokens that were generated, the end of sequence included."""
        texts_BK, chances_GBK = self._generated(asked, [self.temperature])
        return [_answer(texts, chances) for texts, chances in zip(texts_BK, chances_GBK[0].tolist(), strict=True)]

    def said(self, asked: Asked, targets: "Tensor") -> "tuple[Tensor, list[Answer]]":
        sequence = self.with_answers(asked.model, asked.embeddings_BSD, asked.mask_BS, targets)
        read = asked.model.read(*sequence, logits_to_keep=targets.shape[1], use_cache=True)
        return read.logits, self.scored_answers(self.remembering(asked, read, targets.shape[1]))

    @staticmethod
    def remembering(asked: Asked, read: Any, answer: int) -> Asked:
        """With what the language model remembers of having read it with an answer of that many tokens behind it, which
        is forgotten. As it is where a model remembers otherwise than all positions, or several texts are followed."""
        from transformers.cache_utils import DynamicCache, DynamicLayer

        past = read.get("past_key_values")
        whole = type(past) is DynamicCache and all(type(layer) is DynamicLayer for layer in past.layers)
        if not whole or GenerationSettings(**asked.model.config.generation).num_beams > 1:
            return asked
        past.crop(-answer)
        return replace(asked, past=past)

    def _generated(self, asked: Asked, temperatures: Sequence[float]) -> tuple[list[list[str]], "Tensor"]:
        """The texts of each row, the best first, K of them with K beams; and how probable the tokens of each are
        together by each temperature (G, B, K)."""
        import torch
        from transformers import LogitsProcessorList

        from training.sampling import Likeliest

        model, tokenizer, end = asked.model, asked.tokenizer, asked.tokenizer.eos_token_id
        how = GenerationSettings(**model.config.generation)
        steps = Likeliest(temperatures)  # which the greedy one takes
        greedy, beams = how == GenerationSettings(), how.num_beams
        more = {"num_return_sequences": beams, "length_penalty": how.length_penalty} if beams > 1 else {}
        ids_BKA = model.llm.generate(
            inputs_embeds=asked.embeddings_BSD,
            attention_mask=asked.mask_BS.long(),
            do_sample=False,
            num_beams=beams,
            repetition_penalty=how.repetition_penalty,
            max_new_tokens=model.config.max_new_tokens,
            eos_token_id=end,
            pad_token_id=tokenizer.pad_token_id,
            past_key_values=asked.past,
            logits_processor=LogitsProcessorList([steps] if greedy else []),
            **more,
        ).unflatten(0, (-1, beams))
        ends_BKA = ids_BKA == end
        said_BKA = ends_BKA.cumsum(2) - ends_BKA.long() == 0  # the end included
        if greedy:
            logs_GBK = (torch.stack(steps.logs_GB, -1)[:, :, None] * said_BKA).sum(-1)
        else:
            written = ids_BKA.masked_fill(~said_BKA, -100)
            of_K = [self._logs(asked, ids_BA, temperatures) for ids_BA in written.unbind(1)]
            logs_GBK = torch.stack(of_K, -1)
        texts = tokenizer.batch_decode(ids_BKA.flatten(0, 1), skip_special_tokens=True)
        rows = range(0, len(texts), beams)
        return [[text.strip() for text in texts[row : row + beams]] for row in rows], logs_GBK.exp()

    def _logs(self, asked: Asked, targets_BA: "Tensor", temperatures: Sequence[float]) -> "Tensor":
        """Log-probability of texts by each temperature (G, B), whatever chose their tokens."""
        import torch
        from torch.nn import functional

        logits_BVA = self.logits(asked.model, asked.embeddings_BSD, asked.mask_BS, targets_BA).float().transpose(1, 2)
        cross = functional.cross_entropy
        return torch.stack([-cross(logits_BVA / t, targets_BA, reduction="none").sum(1) for t in temperatures])

    def _encoded(self, label: str, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
        from training.tokenizer import encode

        if (ids := self._tokens.get(label)) is None:
            ids = encode(tokenizer, self.lead + label, around=False) if label else []
            if len(self._tokens) < _CACHED:
                self._tokens[label] = ids
        return ids


def _entropy(texts: Mapping[tuple[int, ...], int]) -> float:
    """Of the tokens of texts, each with how often it stands, in nats."""
    counts: Counter[int] = Counter()
    for tokens, times in texts.items():
        counts.update({token: times * count for token, count in Counter(tokens).items()})
    return -sum(n / counts.total() * math.log(n / counts.total()) for n in counts.values())


def _answer(texts: Sequence[str], chances: Sequence[float]) -> Answer:
    """The first text; tokens may spell one text in several ways, whose probabilities add up."""
    best: dict[str, float] = {}
    for text, chance in zip(texts, chances, strict=True):
        best[text] = best.get(text, 0.0) + chance
    finite_ones = tuple((text, chance) for text, chance in best.items() if math.isfinite(chance))
    return Answer(texts[0], finite(best[texts[0]]), finite_ones)
