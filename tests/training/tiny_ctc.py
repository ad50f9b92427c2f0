"""CTC models of several families, tiny and with random weights, as Hugging Face folders that spell digits."""

import json
from pathlib import Path

import torch
import transformers as hf

from orchestration.examples import digits

LETTERS = sorted(set("".join(digits._WORDS)))
_LAYERS = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64, "intermediate_size": 128}
_WAVES = _LAYERS | {
    "conv_dim": (16, 16, 16, 16),
    "conv_kernel": (20, 8, 4, 4),
    "conv_stride": (10, 8, 2, 2),
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
_NO_DROPOUT = dict.fromkeys(
    ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout", "final_dropout", "layerdrop"),
    0.0,
)


def tokenizer(folder: Path) -> hf.Wav2Vec2CTCTokenizer:
    folder.mkdir(exist_ok=True)
    words = ["<pad>", "<unk>", "|", *LETTERS]
    (folder / "vocab.json").write_text(json.dumps({word: n for n, word in enumerate(words)}))
    return hf.Wav2Vec2CTCTokenizer(
        str(folder / "vocab.json"), unk_token="<unk>", pad_token="<pad>", bos_token=None, eos_token=None
    )


def make(family: str, folder: Path) -> tuple:
    """Network, feature extractor and tokenizer of a family, with random weights."""
    torch.manual_seed(0)
    written = tokenizer(folder)
    common = {"vocab_size": len(written), "pad_token_id": 0, "bos_token_id": None, "eos_token_id": None} | _NO_DROPOUT
    if family == "wav2vec2-bert":
        mels = {"feature_projection_input_dim": 80, "conv_depthwise_kernel_size": 15, "conformer_conv_dropout": 0.0}
        config = hf.Wav2Vec2BertConfig(**_LAYERS, **common, **mels, apply_spec_augment=False)
        return hf.Wav2Vec2BertForCTC(config), hf.SeamlessM4TFeatureExtractor(feature_size=40, num_mel_bins=40), written
    kind = {"wav2vec2": "Wav2Vec2", "hubert": "Hubert", "wavlm": "WavLM"}[family]
    config = getattr(hf, f"{kind}Config")(**_WAVES, **common, feat_extract_norm="layer", do_stable_layer_norm=True)
    network = getattr(hf, f"{kind}ForCTC")(config)
    return network, hf.Wav2Vec2FeatureExtractor(return_attention_mask=True), written


def save(family: str, folder: Path) -> Path:
    """Saves a model of a family in the folder."""
    for part in make(family, folder):
        part.save_pretrained(folder)
    return folder
