"""The language model's tokenizer: fitted on the training texts for `tiny`, else the model's own."""

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

PAD, BOS, EOS = "<|pad|>", "<|bos|>", "<|eos|>"
_SMALLEST = 256 + 3  # every byte, so that any text can be written, and the special tokens


def fit_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of at most `vocabulary` tokens; decoding gives back any Unicode text exactly.

    Raises:
        ValueError: `vocabulary` has no room for all bytes.
    """
    if vocabulary < _SMALLEST:
        raise ValueError(f"vocabulary is {vocabulary}, expected at least {_SMALLEST}: all bytes and 3 special tokens")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a causal language model, by Hugging Face name or local folder; pads with eos if it has no pad.

    Raises:
        ValueError: it is not there, and cannot be fetched.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(missing_model(name, error)) from error
    if tokenizer.pad_token is None and tokenizer.eos_token is not None:  # without either: see `training.llm.load_llm`
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    return tokenizer


def missing_model(name: str, error: Exception) -> str:
    """What to do about a model that cannot be loaded."""
    if Path(name).is_dir():
        return f"model.llm is the folder {name!r}, and its files cannot be loaded: {' '.join(str(error).split())[:300]}"
    return (
        f"model.llm is {name!r} (no local folder), and its files cannot be loaded. Without a network: download it "
        f"elsewhere (`hf download {name} --local-dir FOLDER`), bring the folder, and set model.llm to its path; "
        "or use `llm: tiny`, which needs no download"
    )
