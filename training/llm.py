"""Language models of Hugging Face: what they must be to read soft tokens and a prompt, and how they are loaded.

Their weights are float32 here, whatever dtype they were stored in: an optimizer's small steps would vanish in bfloat16,
and a model answers the same wherever it is loaded. `training.precision: bfloat16` computes a training in bfloat16
(autocast); a trained model answers in float32.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from training.adaptation import lora_layers
from training.model_files import digest, llm_folder, model_files
from training.outputs.base import Output
from training.packing import keeps_rows_apart, unpackable
from training.settings import TINY, LlmSettings
from training.tokenizer import missing_model

_INSTEAD = "set model.llm to a causal (decoder-only) language model such as a Llama, Qwen or GPT-2, or to `tiny`"
_TOKENS_AT_ONCE = 16_384
_HALF = 8  # tokens of the sequence that tells whether a model is causal: so many stay, so many change
_NOISE = 1e-5  # of float32, as a share of what a change moves where it may


def load_llm(name: str, output: Output, tokenizer: PreTrainedTokenizerBase) -> tuple[PreTrainedModel, str]:
    """The language model of a Hugging Face name or local folder, in eval mode and float32; and what names its files.

    Raises:
        ValueError: it is not there, it is no causal language model, or the tokenizer is another model's.
    """
    folder = llm_folder(name)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        _check_kind(name, config)
        llm = read_llm(folder, output)
    except OSError as error:
        raise ValueError(missing_model(name, error)) from error
    if not is_causal(llm):
        raise ValueError(
            f"model.llm is {name!r} ({config.model_type}), which is not causal: what it says at a token depends on "
            f"later tokens, so in training it would see the answer that it is to give; {_INSTEAD}"
        )
    _check_tokenizer(name, tokenizer, embedded(llm))
    return llm, digest(folder)


def read_llm(folder: Path, output: Output) -> PreTrainedModel:
    """The language model in a folder, as the output wants it, in eval mode and float32."""
    return output.language_model().from_pretrained(
        folder, trust_remote_code=False, use_safetensors=True, dtype=torch.float32
    )


def check_llm(settings: LlmSettings, output: Output, packing: bool | None = None) -> None:
    """Raises ValueError where the language model cannot be trained as it is set; no weight is looked at, unless
    `training.packing` is true, which only they tell."""
    if settings.model == TINY:
        return
    llm = empty_llm(settings.model, output)
    if settings.train == "lora":
        lora_layers(llm, settings.targets, "model.llm")
    if packing and not keeps_rows_apart(read_llm(llm_folder(settings.model), output)):
        raise ValueError(unpackable(settings.model))


def empty_llm(name: str, output: Output, tokenizer: PreTrainedTokenizerBase | None = None) -> PreTrainedModel:
    """The language model as the output wants it, on the meta device: without weights, which are not looked at.

    Raises:
        ValueError: as `load_llm`, but for what only the weights tell.
    """
    folder = llm_folder(name, weights=False)
    try:
        if Path(name).is_dir():
            model_files(folder)
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(missing_model(name, error)) from error
    _check_kind(name, config)
    with torch.device("meta"):
        llm: PreTrainedModel = output.language_model().from_config(config)
    if tokenizer is not None:
        _check_tokenizer(name, tokenizer, embedded(llm))
    return llm


def _check_kind(name: str, config: PreTrainedConfig) -> None:
    """Raises ValueError for what its configuration says it is."""
    if config.is_encoder_decoder:
        raise ValueError(
            f"model.llm is {name!r} ({config.model_type}), an encoder-decoder: soft tokens, prompt and answer have to "
            f"be one sequence; {_INSTEAD}"
        )
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(f"model.llm is {name!r} ({config.model_type}), no causal language model; {_INSTEAD}")
    if getattr(config, "quantization_config", None):
        raise ValueError(
            f"model.llm is {name!r} ({config.model_type}), quantized: name the model that it was made from"
        )


def _check_tokenizer(name: str, tokenizer: PreTrainedTokenizerBase, embedded: int) -> None:
    """Raises ValueError where the tokenizer is not that of a model with so many embeddings, or cannot end an answer."""
    for role in ("eos_token", "pad_token"):
        token, number = getattr(tokenizer, role), getattr(tokenizer, f"{role}_id")
        if token is None:
            raise ValueError(f"the tokenizer of {name!r} has no {role}, so no answer could end: set it there")
        if number >= embedded:
            raise ValueError(
                f"the {role} {token!r} of {name!r} is token {number}, and the model has embeddings of {embedded}: save "
                "it again after `model.resize_token_embeddings(len(tokenizer))`, or take its own tokenizer"
            )


@torch.no_grad()
def is_causal(llm: PreTrainedModel) -> bool:
    """Whether nothing that it says at a token changes with later tokens; tried out, as a configuration may not tell."""
    embed: Any = llm.get_input_embeddings()
    draw = torch.Generator().manual_seed(0)  # torch's global one decides the weights of what is made next
    ids_BS = torch.randint(embed.weight.shape[0], (2, 2 * _HALF), generator=draw)
    ids_BS[1, :_HALF] = ids_BS[0, :_HALF]
    said_BSX = llm(inputs_embeds=embed(ids_BS), attention_mask=torch.ones_like(ids_BS))[0]
    moved_S = (said_BSX[0] - said_BSX[1]).abs().amax(-1)
    return not bool(moved_S[:_HALF].max() > _NOISE * moved_S[_HALF:].max())


def embedded(llm: PreTrainedModel) -> int:
    """How many tokens it has embeddings of."""
    embed: Any = llm.get_input_embeddings()
    return int(embed.weight.shape[0])


def embedding_width(llm: PreTrainedModel) -> int:
    """Of a token as it is read; what lies behind may be wider."""
    embed: Any = llm.get_input_embeddings()
    return int(embed.weight.shape[1])


@torch.no_grad()
def embedding_size(llm: PreTrainedModel) -> float:
    """The root mean square of a token as it is read, of the median token: some are never trained, and stay small."""
    embed: Any = llm.get_input_embeddings()  # asked, since some models scale what their table holds
    chunks = torch.arange(embed.weight.shape[0]).split(_TOKENS_AT_ONCE)
    return float(torch.cat([embed(ids).square().mean(-1).sqrt() for ids in chunks]).median())


def positions(config: PreTrainedConfig) -> int | None:
    """How many tokens a language model reads at most: those it has positions for, or was trained with; None: any."""
    return getattr(config.get_text_config(), "max_position_embeddings", None) or None
