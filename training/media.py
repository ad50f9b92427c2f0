"""Decodes bytes that nobody vouches for: images with Pillow, speech with soundfile (libsndfile).

Whatever is wrong with the bytes ends as one `MediaError` with a reason code and words for a person; the caller adds
which file it was. Headers are checked against `MediaLimits` before anything is decoded or allocated. The content
decides the format, never the name.

Shapes: H, W rows and columns; F frames (samples per channel).
"""

import contextlib
import functools
import io
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import PIL.ExifTags
import PIL.Image
import PIL.ImageOps

from training.settings import MediaLimits

if TYPE_CHECKING:
    import soundfile

# Raster formats that Pillow decodes by itself; others (EPS runs Ghostscript, SVG is a program) are refused.
IMAGE_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "DIB", "WEBP", "TIFF", "PPM", "AVIF", "JPEG2000")
SPEECH_FORMATS = ("WAV", "FLAC", "OGG", "MP3", "AIFF", "AU", "CAF", "W64")
# Suffix of a file's name -> formats that such a file may have, the one that it is called after first.
_JPEG, _BMP = ("JPEG", "MPO"), ("BMP", "DIB")
_ONE_FORMAT = {
    ".png": "PNG", ".gif": "GIF", ".webp": "WEBP", ".tif": "TIFF", ".tiff": "TIFF", ".avif": "AVIF",
    ".jp2": "JPEG2000", ".ppm": "PPM", ".pgm": "PPM", ".pbm": "PPM", ".pnm": "PPM",
    ".wav": "WAV", ".flac": "FLAC", ".ogg": "OGG", ".oga": "OGG", ".opus": "OGG", ".mp3": "MP3", ".aif": "AIFF",
    ".aiff": "AIFF", ".au": "AU", ".caf": "CAF", ".w64": "W64",
}  # fmt: skip
SUFFIX_FORMATS = {
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"), _JPEG),
    **dict.fromkeys((".bmp", ".dib"), _BMP),
    **{suffix: (name,) for suffix, name in _ONE_FORMAT.items()},
}
# How files start. What is known and cannot be read has a name too.
_PICTURE_STARTS = (
    (rb"\xff\xd8", "JPEG"),
    (rb"\x89PNG", "PNG"),
    (rb"GIF8", "GIF"),
    (rb"RIFF....WEBP", "WEBP"),
    (rb"II\*\0|MM\0\*", "TIFF"),
)
_FOREIGN = (
    (rb"....ftyp(heic|heix|hevc|heim|heis|mif1|msf1)", "HEIC"),
    (rb"....ftyp", "MP4/M4A (AAC)"),
    (rb"\x1aE\xdf\xa3", "Matroska/WebM"),
    (rb"0&\xb2u", "WMA"),
    (rb"#!AMR", "AMR"),
    (rb"\xff[\xf0\xf1\xf8\xf9]", "AAC"),
    (rb"%PDF", "PDF"),
    (rb"\s*<(\?xml|svg|!doctype|html)", "XML, SVG or HTML"),
    (rb"PK\x03\x04", "ZIP"),
)
# libsndfile takes arbitrary bytes for MP3 when it finds something like a frame in them; the start decides instead.
_SPEECH_STARTS = (
    (rb"(RIFF|RIFX|RF64)....WAVE", "WAV"),
    (rb"fLaC", "FLAC"),
    (rb"OggS", "OGG"),
    (rb"ID3|\xff[\xe2-\xe7\xf2-\xf7\xfa-\xff]", "MP3"),
    (rb"FORM....AIF[FC]", "AIFF"),
    (rb"\.snd|dns\.", "AU"),
    (rb"caff", "CAF"),
    (rb"riff\x2e\x91\xcf\x11", "W64"),
)
_MAX_RATE = 768_000  # Hz; more is a damaged header
_MIN_RATE = 1_000
_UNKNOWN_FRAMES = 2**48  # streamed FLAC does not say its length: libsndfile then gives the largest integer
_BLOCK_VALUES = 2**20  # values decoded at a time


class MediaError(ValueError):
    """Bytes that cannot be used. `reason` is a code of QUARANTINE: empty, truncated, corrupt, unsupported, too_large,
    no_samples."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)
        self.reason = reason
        self.message = message

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True)
class Image:
    array: np.ndarray  # uint8 (H, W, 3) RGB, upright
    format: str
    mode: str  # Pillow's, as stored: RGB, L, P, CMYK, ...
    width: int  # of the upright original; `array` may be smaller (`target`)
    height: int
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Speech:
    waveform: np.ndarray  # float32 (F,), mono, within [-1, 1]
    sample_rate: int  # Hz
    format: str
    channels: int  # as stored
    frames: int
    warnings: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        return self.frames / self.sample_rate


def decode_image(data: bytes, limits: MediaLimits, target: int | None = None) -> Image:
    """Upright 8-bit RGB of any supported picture; of an animation its first frame.

    Alpha is composited on white; palettes are expanded; CMYK is converted without its colour profile; 16-bit grey
    becomes its high byte; 32-bit and float grey are scaled from their smallest to their largest value, with a warning.
    A JPEG much larger than `target` (the wanted short side in pixels) is decoded at 1/2, 1/4 or 1/8 of its size, never
    below `target`. Raises MediaError.
    """
    _check_size(data, limits)
    with _decoding("picture"):
        try:
            image = PIL.Image.open(io.BytesIO(data), formats=_image_formats())
        except PIL.UnidentifiedImageError as error:
            raise _unknown_format(data, "a picture", IMAGE_FORMATS, "JPEG or PNG") from error
    image_format, mode, (width, height) = str(image.format), image.mode, image.size
    if width * height > limits.max_pixels:
        raise MediaError("too_large", f"{width}x{height} pixels are over the limit of {limits.max_pixels} (max_pixels)")
    warnings: list[str] = []
    with _decoding("picture"):
        if (frames := getattr(image, "n_frames", 1)) > 1:
            warnings.append(f"first of {frames} frames used")
        if image_format == "PNG":  # decoding alone checks no CRC, and an image that was verified cannot be decoded
            PIL.Image.open(io.BytesIO(data), formats=("PNG",)).verify()
        if target is not None:
            image.draft(None, (target, target))
        image.load()
        rgb = _to_rgb(image, warnings)
    orientation = 1 if image_format == "TIFF" else _orientation(image, warnings)  # Pillow turns TIFFs by itself
    if orientation > 4:  # it lies on its side
        width, height = height, width
    rgb = _upright(rgb, orientation)
    return Image(np.asarray(rgb), image_format, mode, width, height, tuple(warnings))


@contextlib.contextmanager
def _decoding(kind: str) -> Iterator[None]:
    """Turns what a decoder raises on damaged bytes into a MediaError."""
    try:
        yield
    except MediaError:
        raise
    except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning, MemoryError) as error:
        raise MediaError("too_large", f"the {kind} is too large to decode ({error})") from error
    except Exception as error:  # nearly anything: OSError, SyntaxError, struct.error, IndexError, ...
        reason = "truncated" if re.search("truncated|end of file|not enough|EOF", str(error)) else "corrupt"
        raise MediaError(reason, f"the {kind} is {reason} ({_words(error)})") from error


@functools.cache
def _image_formats() -> tuple[str, ...]:
    """Those of IMAGE_FORMATS that this build of Pillow has."""
    PIL.Image.init()
    return tuple(name for name in IMAGE_FORMATS if name in PIL.Image.OPEN)


def _orientation(image: PIL.Image.Image, warnings: list[str]) -> int:
    """How EXIF says that the stored picture is turned: 1 (upright) to 8."""
    try:
        with _decoding("EXIF header"):
            orientation = image.getexif().get(PIL.ExifTags.Base.Orientation)
            return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1
    except MediaError as error:
        warnings.append(f"taken as upright: {error}")
        return 1


def _upright(rgb: PIL.Image.Image, orientation: int) -> PIL.Image.Image:
    if orientation == 1:
        return rgb
    bare = PIL.Image.fromarray(np.asarray(rgb))  # without the other tags, of which a damaged one would be in the way
    bare.getexif()[PIL.ExifTags.Base.Orientation] = orientation
    return PIL.ImageOps.exif_transpose(bare)


def _to_rgb(image: PIL.Image.Image, warnings: list[str]) -> PIL.Image.Image:
    if image.mode.startswith("I;16"):
        return PIL.Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        values = np.asarray(image, dtype=np.float64)
        low, high = values.min(), values.max()
        if not (math.isfinite(low) and math.isfinite(high)):
            raise MediaError("corrupt", "the picture has values that are not finite")
        warnings.append(f"{low:g} to {high:g} scaled to 0 to 255")
        scaled = (values - low) * (255 / (high - low)) if high > low else np.zeros_like(values)
        return PIL.Image.fromarray(scaled.astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return PIL.Image.alpha_composite(PIL.Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


class _Bytes(io.BytesIO):
    """libsndfile seeks before the start of damaged files; an exception in its callback would print a traceback."""

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return super().seek(max(0, offset) if whence == 0 else offset, whence)


def decode_speech(data: bytes, limits: MediaLimits) -> Speech:
    """Mono float32 of any format that libsndfile reads; several channels are averaged.

    Samples beyond [-1, 1] (float files, lossy codecs) are divided by the peak, with a warning. A file with fewer
    frames than its header says, or more, gives the frames both agree on and a warning. Raises MediaError.
    """
    import soundfile

    _check_size(data, limits)
    if _sniff(data, _SPEECH_STARTS) is None:
        raise _unknown_format(data, "audio", SPEECH_FORMATS, "WAV or FLAC")
    try:
        with soundfile.SoundFile(_Bytes(data)) as file:
            # After each read soundfile would seek to where the file is anyway, which fails if the length is unknown.
            file.seekable = lambda: False
            return _decode_speech(file, limits)
    except soundfile.SoundFileError as error:
        raise MediaError("corrupt", f"the audio is damaged or cut ({_words(error)})") from error


def _decode_speech(file: "soundfile.SoundFile", limits: MediaLimits) -> Speech:
    rate, channels, claimed = file.samplerate, file.channels, file.frames
    if not _MIN_RATE <= rate <= _MAX_RATE:
        raise MediaError("corrupt", f"the header says {rate} Hz, expected {_MIN_RATE} to {_MAX_RATE}")
    known = claimed < _UNKNOWN_FRAMES
    most = int(limits.max_seconds * rate)
    if known and claimed > most:
        raise _too_long(claimed / rate, limits)
    parts: list[np.ndarray] = []
    frames = 0
    # The header's length is not trusted: memory grows with what was decoded.
    while frames < claimed:
        count = min(claimed - frames, max(1, _BLOCK_VALUES // channels))
        block = file.read(count, dtype="float32", always_2d=True)
        if len(block) == 0:
            break
        if not np.isfinite(block).all():
            raise MediaError("corrupt", f"samples that are not finite numbers within {frames} to {frames + len(block)}")
        frames += len(block)
        if frames > most:
            raise _too_long(frames / rate, limits)
        parts.append(block[:, 0] if channels == 1 else block.mean(axis=1, dtype=np.float64).astype(np.float32))
    if frames == 0:
        raise MediaError("no_samples", "the audio has no samples: nothing follows its header")
    waveform = parts[0] if len(parts) == 1 else np.concatenate(parts)
    warnings: list[str] = []
    # libsndfile's log marks what it had to correct.
    odd = [line.strip() for line in file.extra_info.splitlines() if re.search(r"\(should be|\*\*\*|Junk", line)]
    if known and frames != claimed:
        odd.append(f"{claimed} frames announced")
    if odd:
        said = re.sub(" +", " ", "; ".join(odd))[:200]
        warnings.append(f"header and data disagree, {frames} frames decoded ({said})")
    peak = float(np.abs(waveform).max())
    if peak == 0:
        warnings.append("silence: every sample is zero")
    elif peak > 1:
        warnings.append(f"samples reach {peak:.3g}, scaled into [-1, 1]")
        waveform = (waveform / peak).astype(np.float32)
    return Speech(waveform, rate, file.format, channels, frames, tuple(warnings))


def _check_size(data: bytes, limits: MediaLimits) -> None:
    if not data:
        raise MediaError("empty", "the file is empty (0 bytes)")
    if len(data) > limits.max_bytes:
        raise MediaError("too_large", f"{len(data)} bytes are over the limit of {limits.max_bytes} (max_bytes)")


def _too_long(seconds: float, limits: MediaLimits) -> MediaError:
    return MediaError("too_large", f"{seconds:.1f} s are over the limit of {limits.max_seconds:g} s (max_seconds)")


def _sniff(data: bytes, starts: tuple[tuple[bytes, str], ...]) -> str | None:
    return next((name for start, name in starts if re.match(start, data[:64], re.DOTALL | re.IGNORECASE)), None)


def _unknown_format(data: bytes, kind: str, readable: tuple[str, ...], convert_to: str) -> MediaError:
    actual = _sniff(data, _PICTURE_STARTS) or _sniff(data, _SPEECH_STARTS) or _sniff(data, _FOREIGN)
    if actual in readable:
        return MediaError("corrupt", f"starts like {actual}, but the header is damaged or cut")
    what = f"{actual} cannot be read as {kind}" if actual else f"not a format known as {kind}"
    return MediaError("unsupported", f"{what}: convert it to {convert_to} (readable: {', '.join(readable)})")


def _words(error: Exception) -> str:
    return re.sub(r"<[^>]*>", "the data", str(error) or type(error).__name__)
