"""Speech: a neural codec of Hugging Face, as it is: EnCodec, DAC or Mimi.

Shapes: N samples, T frames, Q codebooks.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from training.codecs.base import Codec
from training.codecs.options import Huggingface, Source, hop_of
from training.model_files import model_folder
from training.spectra import as_int16, resample


class HuggingfaceSpeechCodec(Codec):
    """The codes of a frame's codebooks stand one after the other, each codebook with numbers of its own. The
    preprocessing is none: recordings are mono, resampled to the model's rate and back."""

    def __init__(self, source: Source, options: Huggingface) -> None:
        from transformers import AutoModel

        super().__init__()
        self.source, self.options, self.alphabet = source, options, options.alphabet(source)
        config = options.config()
        self.pretrained: Any = AutoModel.from_pretrained(
            model_folder(options.model), config=config, use_safetensors=True, trust_remote_code=False
        )
        self.rate, self.hop, self.codebook = config.sampling_rate, hop_of(config), config.codebook_size

    @torch.inference_mode()
    def encode(self, contents: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [self._encode(content) for content in contents]  # one by one: padding would be heard

    def _encode(self, content: np.ndarray) -> np.ndarray:
        waveform = resample(content.astype(np.float32) / 32767, self.source.rate, self.rate)
        waveform = waveform[: round(self.options.seconds * self.rate)]
        waveform = np.pad(waveform, (0, max(0, self.hop - len(waveform))))
        values = torch.from_numpy(waveform).to(self.device)[None, None]
        found = self.pretrained.encode(values).audio_codes  # (..., Q, T), of one recording
        codes_QT = found.reshape(-1, found.shape[-1])[: self.options.codebooks]
        offsets = torch.arange(len(codes_QT), device=codes_QT.device)[:, None] * self.codebook
        return (codes_QT + offsets).T.flatten().long().cpu().numpy()[: self.alphabet.length]

    @torch.inference_mode()
    def decode(self, codes: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [self._decode(one) for one in codes]

    def _decode(self, codes: np.ndarray) -> np.ndarray:
        books = self.options.codebooks
        whole = codes[: max(1, len(codes) // books) * books]
        whole = np.pad(whole, (0, -len(whole) % books)) % self.codebook
        codes_QT = torch.from_numpy(whole.reshape(-1, books).T.copy()).to(self.device)
        if self.pretrained.config.model_type == "encodec":
            said = self.pretrained.decode(codes_QT[None, None], [None])
        elif self.pretrained.config.model_type == "dac":
            said = self.pretrained.decode(audio_codes=codes_QT[None])
        else:
            said = self.pretrained.decode(codes_QT[None])
        waveform = said.audio_values.float().flatten().cpu().numpy()
        return as_int16(resample(waveform, self.rate, self.source.rate))
