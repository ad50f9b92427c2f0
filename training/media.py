"""What decoding of any media has in common: bytes that nobody vouches for, of which the content decides the format.

Whatever is wrong with the bytes ends as one `MediaError` with a reason code and words for a person; the caller adds
which file it was. Pictures are decoded by `training.images`, recordings by `training.recordings`.
"""

import contextlib
import re
from collections.abc import Iterator

from training.messages import one_line
from training.settings import MediaLimits

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
_FLAGS = re.DOTALL | re.IGNORECASE
# How files start. What is known and cannot be read has a name too.
_PICTURE_STARTS = (
    (rb"\xff\xd8", "JPEG"),
    (rb"\x89PNG", "PNG"),
    (rb"GIF8", "GIF"),
    (rb"RIFF....WEBP", "WEBP"),
    (rb"II\*\0|MM\0\*", "TIFF"),
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
# What stands in the place of a file that lies elsewhere.
_POINTERS = (
    (rb"version https://git-lfs", "a pointer of Git LFS: fetch the files with `git lfs pull`"),
    (rb"/annex/objects/", "a pointer of git-annex: fetch the files with `git annex get`"),
    (rb"\.{1,2}/[^\0-\x1f]+\s*\Z", "a link that was copied as text: copy links as links (cp -a, git core.symlinks)"),
)
_LONGEST_POINTER = 1024  # bytes
_AGAIN = "export or download it again"


class MediaError(ValueError):
    """Bytes that cannot be used. `reason` is a code of QUARANTINE: empty, truncated, corrupt, unsupported, too_large,
    too_slow, crashed, killed, no_samples. `message` is one line for a person, that says what to do."""

    def __init__(self, reason: str, message: str, limit: str | None = None) -> None:
        message = one_line(message)
        super().__init__(reason, message, limit)
        self.reason = reason
        self.message = message
        self.limit = limit  # the field of MediaLimits that refuses them

    def __str__(self) -> str:
        return self.message


@contextlib.contextmanager
def decoding(kind: str, does: str = _AGAIN) -> Iterator[None]:
    """Turns what a decoder raises on damaged bytes into a MediaError that says what to do (`does`)."""
    try:
        yield
    except MediaError:
        raise
    except MemoryError as error:
        raise out_of_memory(kind, error) from error
    except Exception as error:  # nearly anything: OSError, SyntaxError, struct.error, IndexError, ...
        reason = "truncated" if re.search("truncated|end of file|not enough|EOF", str(error)) else "corrupt"
        raise MediaError(reason, f"the {kind} is {reason} ({words(error)}): {does}") from error


def out_of_memory(kind: str, error: MemoryError, limit: str | None = "max_decode_memory") -> MediaError:
    """Args: `limit` is that of MediaLimits which allows no more; null: all that there is."""
    said = f"the {kind} needs more memory than there is for it ({words(error)})"
    return MediaError("too_large", f"{said}: {f'raise limits.{limit}, or ' if limit else ''}make it smaller", limit)


def check_size(data: bytes, limits: MediaLimits) -> None:
    if not data:
        raise MediaError("empty", "the file is empty (0 bytes): copy it again, or remove it")
    if len(data) > limits.max_bytes:
        raise too_large(f"{len(data)} bytes", "max_bytes", limits.max_bytes)


def too_large(what: str, limit: str, most: float) -> MediaError:
    """What is more than a limit allows, and how to allow more."""
    words = f"{what} are over the limit of {most}: raise limits.{limit}, or make it smaller"
    return MediaError("too_large", words, limit)


def speech_format(data: bytes) -> str | None:
    return _sniff(data, _SPEECH_STARTS)


def unknown_format(data: bytes, kind: str, readable: tuple[str, ...], convert_to: str) -> MediaError:
    if len(data) < _LONGEST_POINTER and (pointer := _sniff(data, _POINTERS)):
        return MediaError("unsupported", f"the file is not here, but {pointer}")
    actual = _sniff(data, _PICTURE_STARTS) or _sniff(data, _SPEECH_STARTS) or _sniff(data, _FOREIGN)
    if actual in readable:
        return MediaError("corrupt", f"starts like {actual}, but the header is damaged or cut: {_AGAIN}")
    what = f"{actual} cannot be read as {kind}" if actual else f"not a format known as {kind}"
    return MediaError("unsupported", f"{what}: convert it to {convert_to} (readable: {', '.join(readable)})")


def _sniff(data: bytes, starts: tuple[tuple[bytes, str], ...]) -> str | None:
    return next((name for start, name in starts if re.match(start, data[:64], _FLAGS)), None)


def words(error: Exception) -> str:
    """What a decoder said, without the bytes that it may quote."""
    said = re.sub(r"<[^>]*>|\bb(['\"]).*\1", "the data", str(error) or type(error).__name__)
    return one_line(said, 200)
