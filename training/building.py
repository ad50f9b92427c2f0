"""A new model as the settings say it, before its training."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from training.catalog import ENCODERS, OUTPUTS
from training.encoders.base import Start
from training.family import Choice
from training.features import FeatureSettings
from training.layers import ModelShape
from training.llm import embedding_size, embedding_width, load_llm
from training.model import FusionModel
from training.model_config import FusionConfig
from training.prompt import prompt_tokens
from training.settings import TINY, MediaLimits, ModelSettings, complete
from training.validation import to_dict


def build_model(
    settings: ModelSettings,
    features: FeatureSettings,
    tokenizer: PreTrainedTokenizerBase,
    modalities: tuple[str, ...],
    labels: Sequence[str] = (),
) -> FusionModel:
    """A new model; the weights of pretrained parts are loaded: encoders of Hugging Face, and the language model unless
    it is `tiny`. Draws from torch's global generator.

    Args:
        modalities: those it can read.
        labels: of the training rows; the output may need them (`Output.fit`).

    Raises:
        ValueError: the language model is not there or is none (`load_llm`), a target of LoRA is not there (`adapt`),
            the same of an encoder, or the output cannot have such labels.
    """
    output = OUTPUTS.make(settings.output, {})
    read = {m: encoder for m, encoder in settings.encoders.items() if m in modalities}  # a baseline reads fewer
    settings = complete(replace(settings, encoders=read), {m: features.forms[m] for m in modalities})
    assert features == features.with_encoders(settings.encoders)
    name = settings.llm.model
    with torch.random.fork_rng(devices=[]):  # what is drawn next shall not depend on how files are read
        starts = _starts(settings.encoders, features)
        pretrained, digest = (None, None) if name == TINY else load_llm(name, output, tokenizer)
    config = FusionConfig(
        modalities=list(modalities),
        encoders={m: encoder.plain() for m, encoder in settings.encoders.items()},
        inputs={m: to_dict(features.featurizer(m).shape()) for m in modalities},
        pretrained={m: start.facts for m, start in starts.items()},
        fusion=settings.fusion.plain(),
        output=settings.output.plain(),
        fitted=output.fit(labels, tokenizer, settings),
        width=settings.width,
        heads=settings.heads,
        tokens=settings.tokens,
        dropout=settings.dropout,
        max_new_tokens=settings.max_new_tokens,
        generation=to_dict(settings.generation),
        llm_training=settings.llm.adaptation(),
        llm_base={} if pretrained is None else {"model": name, "sha256": digest},
        # A copy: the fused model says in its own how attention is computed, and must not in the language model's.
        llm_config=tiny_config(settings, tokenizer) if pretrained is None else copy.deepcopy(pretrained.config),
        embedding_width=settings.width if pretrained is None else embedding_width(pretrained),
        embedding_size=None if pretrained is None else embedding_size(pretrained),
    )
    if settings.prompt is not None:
        config.template, config.leads = prompt_tokens(settings.prompt, tokenizer, config)
    model = FusionModel(config, pretrained)
    if pretrained is None:
        _silence(model.llm.base_model)
    for m, start in starts.items():
        encoder: Any = model.encoders[m]
        encoder.take(start, f"model.encoders.{m}", *_example(features, m))
    return model


def _silence(llm: Any) -> None:
    """The layers of a new decoder add nothing at first (Bachlechner et al. 2021): so it starts as a linear model, which
    a few hundred rows are enough for, and becomes as deep as its data asks for."""
    for layer in llm.layers:
        for last in (layer.self_attn.o_proj, layer.mlp.down_proj):
            nn.init.zeros_(last.weight)


def check_encoders(encoders: Mapping[str, Choice], features: FeatureSettings) -> None:
    """Raises ValueError where a pretrained encoder is not there, is one of something else, does not read what its own
    preprocessing makes, or cannot be trained as it is said."""
    for modality, start in _starts(encoders, features).items():
        form, shape = features.forms[modality], ModelShape(width=8, tokens=1, heads=1)
        source = features.featurizer(modality).shape()
        encoder = ENCODERS.make(encoders[modality], source, shape, scope=form, facts=start.facts)
        encoder.take(start, f"model.encoders.{modality}", *_example(features, modality))


def _starts(encoders: Mapping[str, Choice], features: FeatureSettings) -> dict[str, Start]:
    """What those that are pretrained start from."""
    starts = {}
    for modality, choice in encoders.items():
        form = features.forms[modality]
        try:
            start = ENCODERS.load(choice.kind, form).start(ENCODERS.options(choice, form))
        except ValueError as error:
            raise ValueError(f"model.encoders.{modality}: {error}") from error
        if start is not None:
            starts[modality] = start
    return starts


def _example(features: FeatureSettings, modality: str) -> tuple[Tensor, Tensor | None]:
    """A batch of one small content."""
    kind, featurizer = features.modality(modality), features.featurizer(modality)
    content = kind.decode(kind.example(), MediaLimits(), featurizer.decoded_size)
    return featurizer.batch([featurizer.featurize(content)[featurizer.read]])


def tiny_config(settings: ModelSettings, tokenizer: PreTrainedTokenizerBase) -> LlamaConfig:
    """A small decoder of the Llama family, to be trained from scratch."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.width,
        intermediate_size=settings.width * 4,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        attention_dropout=settings.dropout,
        max_position_embeddings=4096,
        initializer_range=settings.width**-0.5,  # the default, 0.02, suits widths in the thousands
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
