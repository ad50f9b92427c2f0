"""Encoders of many families, tiny and with random weights, as Hugging Face folders with real preprocessing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf

from training import torch_models
from training.preprocessing import Picture, Recording
from training.tokenizer import fit_tokenizer

_LAYERS = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 32}
_VOCABULARY = {"vocab_size": 300, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_SQUARE = {"size": {"height": 32, "width": 32}}
_CROP = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
_WAVES = _LAYERS | {
    "conv_dim": (8, 8, 8),
    "conv_kernel": (10, 8, 4),
    "conv_stride": (5, 8, 4),
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}


def make(family: str, folder: Path) -> Path:
    """Saves the encoder of a family of FAMILIES in the folder."""
    torch.manual_seed(0)
    _, build = FAMILIES[family]
    for part in build():
        part.save_pretrained(folder)
    return folder


def _tokenizer() -> hf.PreTrainedTokenizerFast:
    return fit_tokenizer(["a text"], 300)


def _bert() -> tuple:
    return hf.BertModel(hf.BertConfig(**_LAYERS, vocab_size=300, max_position_embeddings=24)), _tokenizer()


def _t5() -> tuple:
    shape = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    return hf.T5Model(hf.T5Config(**shape, **_VOCABULARY)), _tokenizer()


def _clip() -> tuple:
    config = hf.CLIPConfig(
        text_config=_LAYERS | _VOCABULARY | {"max_position_embeddings": 24},
        vision_config=_LAYERS | {"image_size": 32, "patch_size": 8},
    )
    return hf.CLIPModel(config), hf.CLIPImageProcessor(**_CROP), _tokenizer()


def _siglip() -> tuple:
    config = hf.SiglipConfig(
        text_config=_LAYERS | _VOCABULARY | {"max_position_embeddings": 24},
        vision_config=_LAYERS | {"image_size": 32, "patch_size": 8},
    )
    return hf.SiglipModel(config), hf.SiglipImageProcessor(**_SQUARE), _tokenizer()


def _vit() -> tuple:
    return hf.ViTModel(hf.ViTConfig(**_LAYERS, image_size=32, patch_size=8)), hf.ViTImageProcessor(**_SQUARE)


def _dinov2() -> tuple:
    config = hf.Dinov2WithRegistersConfig(**_LAYERS, image_size=32, patch_size=8, num_register_tokens=4)
    return hf.Dinov2WithRegistersModel(config), hf.BitImageProcessor(**_CROP)


def _convnext() -> tuple:
    config = hf.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2)
    return hf.ConvNextModel(config), hf.ConvNextImageProcessor(size={"shortest_edge": 32})


def _timm() -> tuple:
    said = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 0.9, "num_classes": 2}
    config = hf.TimmWrapperConfig(architecture="test_vit", pretrained_cfg=said, model_args={"img_size": 32})
    return (hf.TimmWrapperModel(config),)


def _wav2vec2() -> tuple:
    return hf.Wav2Vec2Model(hf.Wav2Vec2Config(**_WAVES)), hf.Wav2Vec2FeatureExtractor(return_attention_mask=False)


def _hubert() -> tuple:
    config = hf.HubertConfig(**_WAVES, feat_extract_norm="layer", do_stable_layer_norm=True)
    return hf.HubertModel(config), hf.Wav2Vec2FeatureExtractor(return_attention_mask=True)


def _wavlm() -> tuple:
    return hf.WavLMModel(hf.WavLMConfig(**_WAVES)), hf.Wav2Vec2FeatureExtractor(return_attention_mask=True)


def _whisper() -> tuple:
    shape = {"d_model": 16, "encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 2}
    shape |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    tokens = _VOCABULARY | {"decoder_start_token_id": 1, "suppress_tokens": None, "begin_suppress_tokens": None}
    config = hf.WhisperConfig(**shape, **tokens)
    return hf.WhisperModel(config), hf.WhisperFeatureExtractor()


def _ast() -> tuple:
    config = hf.ASTConfig(**_LAYERS, max_length=128, num_mel_bins=32)
    return hf.ASTModel(config), hf.ASTFeatureExtractor(max_length=128, num_mel_bins=32)


def _clap() -> tuple:
    audio = {"hidden_size": 16, "patch_embeds_hidden_size": 8, "depths": [1, 1], "num_attention_heads": [2, 2],
             "num_hidden_layers": 2, "spec_size": 64, "num_mel_bins": 16, "window_size": 4}  # fmt: skip
    config = hf.ClapConfig(
        text_config=_LAYERS | {"vocab_size": 300, "max_position_embeddings": 24, "pad_token_id": 0},
        audio_config=audio,
        projection_dim=8,
    )
    extractor = hf.ClapFeatureExtractor(feature_size=16, max_length_s=2, truncation="rand_trunc")
    return hf.ClapModel(config), extractor, _tokenizer()


def _torchvision() -> tuple:
    model = torch_models.TorchvisionModel(torch_models.TorchvisionConfig(name="squeezenet1_1"))
    return model, torch_models.picture_processor("squeezenet1_1")


def _torchaudio() -> tuple:
    """A bundle such as torchaudio's own, but tiny."""
    import torchaudio

    whole = torchaudio.pipelines.WAVLM_BASE
    layers = [(8, 10, 5), (8, 8, 8), (8, 4, 4)]
    small = {"extractor_conv_layer_config": layers, "encoder_embed_dim": 16, "encoder_num_layers": 2}
    small |= {"encoder_num_heads": 2, "encoder_ff_interm_features": 32, "encoder_pos_conv_kernel": 8}
    params = whole._params | small | {"encoder_pos_conv_groups": 2}
    torchaudio.pipelines.TINY = type(whole)("", params, 16_000, True, "WavLM")
    model = torch_models.TorchaudioModel(torch_models.TorchaudioConfig(name="TINY"))
    return model, torch_models.speech_processor("TINY")


# Family -> the modalities that it encodes, and what makes it.
FAMILIES: dict[str, tuple[tuple[str, ...], Callable[[], tuple]]] = {
    "bert": (("text",), _bert),
    "t5": (("text",), _t5),
    "clip": (("text", "image"), _clip),
    "siglip": (("text", "image"), _siglip),
    "vit": (("image",), _vit),
    "dinov2": (("image",), _dinov2),
    "convnext": (("image",), _convnext),
    "timm": (("image",), _timm),
    "wav2vec2": (("speech",), _wav2vec2),
    "hubert": (("speech",), _hubert),
    "wavlm": (("speech",), _wavlm),
    "whisper": (("speech",), _whisper),
    "ast": (("speech",), _ast),
    "clap": (("speech",), _clap),
    "torchvision": (("image",), _torchvision),
    "torchaudio": (("speech",), _torchaudio),
}
CASES = [(family, modality) for family, (modalities, _) in FAMILIES.items() for modality in modalities]

_RANDOM = np.random.default_rng(0)


def noise(seconds: float, rate: int = 16_000, pad: bool = False) -> Recording:
    return Recording(_RANDOM.standard_normal(round(seconds * rate)).astype(np.float32) / 10, rate, pad)


CONTENTS: dict[str, list[Any]] = {
    "text": ["a", "words, and more of them than it reads at once: " * 3, "two <|eos|> words", ""],
    "image": [
        Picture(_RANDOM.integers(0, 256, shape, dtype=np.uint8)) for shape in ((40, 50, 3), (3, 7, 3), (64, 32, 3))
    ],
    "speech": [noise(0.06), noise(0.6), noise(3.2), noise(0.55, 8000)],
}
