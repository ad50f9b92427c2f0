"""A new model as the settings say it, before its training."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from training.catalog import ENCODERS, OUTPUTS, PRETRAINED_ENCODERS
from training.encoders.base import Start
from training.family import Choice
from training.features import FeatureSettings
from training.featurizers.base import FeatureShape
from training.layers import ModelShape
from training.llm import embedding_size, embedding_width, empty_llm, load_llm, positions
from training.model import FusionModel
from training.model_config import FusionConfig
from training.outputs.linear import LinearOutput
from training.prompt import prompt_tokens, turn_end
from training.settings import TINY, MediaLimits, ModelSettings, TrainingSettings, complete
from training.tokenizer import fit_tokenizer, load_tokenizer
from training.validation import to_dict
from training.views import Places


def build_model(
    settings: ModelSettings,
    features: FeatureSettings,
    tokenizer: PreTrainedTokenizerBase,
    modalities: tuple[str, ...],
    labels: Sequence[str] = (),
    several: Mapping[str, Places] | None = None,
    fitted: Mapping[str, Any] | None = None,
) -> FusionModel:
    """A new model; the weights of pretrained parts are loaded: encoders of Hugging Face, and the language model unless
    it is `tiny`. Draws from torch's global generator.

    Args:
        modalities: those it can read.
        labels: of the training rows; the output may need them (`Output.fit`).
        several: modality -> contents of it that a row may have, where that is not one, or its views.
        fitted: what the output knows of labels, where the rows do not say it.

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
    size = None if pretrained is None else embedding_size(pretrained)
    base = {} if pretrained is None else {"model": name, "sha256": digest}
    if fitted is None:
        fitted = output.fit(labels, tokenizer, settings) | output.of_features(features)
    fitted = dict(fitted)
    facts: dict[str, Any] = {"embedding_size": size, "llm_base": base, "several": _of(several, modalities)}
    made = OUTPUTS.make(settings.output, fitted)
    if isinstance(made, LinearOutput) and made.width and settings.linear_share != 0:
        facts["linear"] = [m for m in modalities if features.forms[m] == "vectors"]
    config = _config(settings, features, starts, tokenizer, fitted, pretrained, **facts)
    model = FusionModel(config, pretrained)
    if pretrained is None and not output.reads_answers and not output.answers_with:
        _silence(model.llm.base_model)
    _check_room(model)
    for m, start in starts.items():
        encoder: Any = model.encoders[m]
        encoder.take(start, f"model.encoders.{m}", *_example(features, m))
    return model


def check_model(
    settings: ModelSettings,
    training: TrainingSettings,
    features: FeatureSettings,
    labels: Sequence[str],
    several: Mapping[str, Places] | None = None,
) -> None:
    """Raises ValueError as `build_model` of the modalities that `settings` has encoders of would, but for what only
    weights tell: the language model's are not read, and pretrained encoders are looked at by `check_encoders`."""
    name, output = settings.llm.model, OUTPUTS.make(settings.output, {})
    tokenizer = fit_tokenizer(labels, training.vocabulary) if name == TINY else own_tokenizer(settings)
    llm = None if name == TINY else empty_llm(name, output, tokenizer)
    # How long answers are the tokenizer of the training will know, which is fitted on more than labels.
    fitted = output.fit(labels, None if name == TINY and output.reads_answers else tokenizer, settings)
    fitted |= output.of_features(features)
    facts: dict[str, Any] = {"embedding_size": None if llm is None else 1.0, "several": _of(several, settings.encoders)}
    config = _config(settings, features, {}, tokenizer, fitted, llm, **facts)
    for m, encoder in settings.encoders.items():
        if encoder.kind in PRETRAINED_ENCODERS:
            config.encoders[m], config.inputs[m] = "linear", to_dict(FeatureShape("vectors", 8))
    _check_room(FusionModel(config, llm))


def _of(several: Mapping[str, Places] | None, modalities: Iterable[str]) -> dict[str, Places]:
    return {m: places for m, places in (several or {}).items() if m in set(modalities)}


def own_tokenizer(settings: ModelSettings) -> PreTrainedTokenizerBase:
    """That of a language model that is not `tiny`; an answer ends as the prompt says. Raises ValueError: it is not
    there."""
    tokenizer = load_tokenizer(settings.llm.model)
    if (end := turn_end(settings.prompt, tokenizer)) is not None:
        tokenizer.eos_token = end  # an answer is one turn
    return tokenizer


def _check_room(model: FusionModel) -> None:
    """Raises ValueError where the language model has no positions for what it is to read and write."""
    config, room = model.config, model.prompt_room
    if model.output.answers_with and model.fusion.late:
        raise ValueError(f"model.fusion is {config.fusion!r}, expected one that reads all at once, for such an output")
    if room is not None and room < bool(model.prompt or config.columns):
        most = positions(config.llm_config) or 0
        raise ValueError(
            f"the language model has {most} positions, and soft tokens (model.tokens), model.prompt and "
            f"model.max_new_tokens ({config.max_new_tokens}) take {most - room} of them beside what rows bring: lower "
            "these, shorten the prompt, or take another model.llm"
        )


def _config(
    settings: ModelSettings,
    features: FeatureSettings,
    starts: Mapping[str, Start],
    tokenizer: PreTrainedTokenizerBase,
    fitted: dict[str, Any],
    llm: PreTrainedModel | None,
    **facts: Any,
) -> FusionConfig:
    """Args: `fitted` is the output's, `llm` the pretrained one, `facts` what its weights tell."""
    modalities = tuple(settings.encoders)
    config = FusionConfig(
        modalities=list(modalities),
        encoders={m: encoder.plain() for m, encoder in settings.encoders.items()},
        inputs={m: to_dict(features.featurizer(m).shape()) for m in modalities},
        pretrained={m: start.facts for m, start in starts.items()},
        fusion=settings.fusion.plain(),
        output=settings.output.plain(),
        fitted=fitted,
        width=settings.width,
        heads=settings.heads,
        tokens=settings.tokens,
        dropout=settings.dropout,
        max_new_tokens=settings.max_new_tokens,
        generation=to_dict(settings.generation),
        llm_training=settings.llm.adaptation(),
        # A copy: the fused model says in its own how attention is computed, and must not in the language model's.
        llm_config=tiny_config(settings, tokenizer) if llm is None else copy.deepcopy(llm.config),
        embedding_width=settings.width if llm is None else embedding_width(llm),
        **facts,
    )
    if settings.prompt is not None:
        config.template, config.leads = prompt_tokens(settings.prompt, tokenizer, config)
    return config


def _silence(llm: Any) -> None:
    """The layers of a new decoder add nothing at first (Bachlechner et al. 2021): so it starts as a linear model, which
    a few hundred rows are enough for, and becomes as deep as its data asks for. One that writes its answers learned
    less of the same rows so: 0.973 and not 0.990 of the built-in example's."""
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
