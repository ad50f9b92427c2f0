"""What a model draws or says, as files that others open: bytes with a media type, as data URLs."""

import base64
import io
from typing import Any

import numpy as np

from training.codecs.options import Source

# Format -> media type, suffix.
PICTURES = {"png": ("image/png", ".png"), "jpeg": ("image/jpeg", ".jpg"), "webp": ("image/webp", ".webp")}
RECORDINGS = {"wav": ("audio/wav", ".wav"), "flac": ("audio/flac", ".flac")}
_SUFFIXES = dict((*PICTURES.values(), *RECORDINGS.values()))


def picture_url(pixels_CHW: np.ndarray, form: str) -> str:
    """uint8 (1 or 3, H, W)."""
    from PIL import Image

    file = io.BytesIO()
    pixels = pixels_CHW[0] if len(pixels_CHW) == 1 else pixels_CHW.transpose(1, 2, 0)
    options: dict[str, Any] = {} if form == "png" else {"quality": 95}
    Image.fromarray(pixels).save(file, form, **options)
    return _url(PICTURES[form][0], file.getvalue())


def recording_url(samples: np.ndarray, rate: int, form: str) -> str:
    """int16 (samples,)"""
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=form.upper(), subtype="PCM_16")
    return _url(RECORDINGS[form][0], file.getvalue())


def _url(media: str, data: bytes) -> str:
    return f"data:{media};base64,{base64.b64encode(data).decode()}"


def is_media(value: Any) -> bool:
    """Whether an answer is a file as this module writes them."""
    return isinstance(value, str) and value.startswith("data:") and value[5:].partition(";")[0] in _SUFFIXES


def file_of_url(url: str) -> tuple[bytes, str]:
    """The bytes, and the suffix of their format."""
    head, _, data = url.partition(",")
    return base64.b64decode(data), _SUFFIXES[head[5:].partition(";")[0]]


def content_of(url: str, source: Source) -> np.ndarray:
    """As a codec gives it, with the channels of the source (pictures), or at its rate."""
    data, _ = file_of_url(url)
    if source.size:
        from PIL import Image

        pixels = np.asarray(Image.open(io.BytesIO(data)).convert("L" if source.channels == 1 else "RGB"))
        return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    import soundfile

    from training.spectra import as_int16, resample

    waveform, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    return as_int16(resample(waveform.mean(1), rate, source.rate))


def python_object(value: Any) -> Any:
    """A PIL image, or samples (float32) and their rate, of an answer that is a file; else the value, and within
    mappings of answers."""
    if isinstance(value, dict):
        return {name: python_object(one) for name, one in value.items()}
    if not is_media(value):
        return value
    data, suffix = file_of_url(value)
    if suffix in (".wav", ".flac"):
        import soundfile

        return soundfile.read(io.BytesIO(data), dtype="float32")
    from PIL import Image

    return Image.open(io.BytesIO(data))
