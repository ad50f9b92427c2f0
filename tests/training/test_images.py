"""Pictures of more than 8 bits are seen, whatever part of their range they use; what is no picture does not matter."""

import io
import struct
import zlib

import numpy as np
import PIL.Image
import PIL.PngImagePlugin
import pytest

from training.images import decode_image
from training.media import MediaError
from training.settings import MediaLimits

LIMITS = MediaLimits()
Y, X = np.mgrid[0:48, 0:64]
RAMP = X * 4095 // 63  # 12 bits
COLOURS = np.stack([RAMP, Y * 4095 // 47, (X + Y) * 4095 // 110], axis=-1)


def png(values: np.ndarray) -> bytes:
    """A 16-bit PNG of (H, W) grey, or (H, W, C) grey with alpha, RGB or RGBA."""
    values = values.reshape(*values.shape[:2], -1).astype(">u2")
    height, width, channels = values.shape
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    lines = b"".join(b"\0" + line.tobytes() for line in values)
    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def tiff(values: np.ndarray, order: str, signed: bool = False) -> bytes:
    """A 16-bit grey TIFF of either byte order (">" or "<")."""
    data = values.astype(f"{order}{'i2' if signed else 'u2'}").tobytes()
    height, width = values.shape
    tags = {256: width, 257: height, 258: 16, 259: 1, 262: 1, 273: 134, 277: 1, 278: height, 279: len(data)}
    tags[339] = 2 if signed else 1  # SampleFormat
    head = (b"MM\0*" if order == ">" else b"II*\0") + struct.pack(f"{order}IH", 8, len(tags))
    for tag, value in tags.items():
        head += struct.pack(f"{order}HHII", tag, 4, 1, value)
    return head + bytes(4) + data


def through(data: bytes) -> tuple[np.ndarray, str]:
    image = decode_image(data, LIMITS)
    return image.array, "; ".join(image.warnings)


@pytest.mark.parametrize(
    ("values", "expected", "said"),
    [
        (RAMP * 16 + 15, RAMP >> 4, ""),  # all 16 bits: the high byte
        (RAMP, RAMP >> 4, "values up to 4095: read as 12 bits, divided by 16"),
        (500 + RAMP * 3000 // 4095, (500 + RAMP * 3000 // 4095) >> 4, "up to 3500: read as 12 bits"),  # millimetres
        (RAMP >> 4, RAMP >> 4, "values up to 255: read as 8 bits, as they are"),
        (RAMP >> 6, RAMP >> 6, "values up to 63: read as 8 bits, as they are"),  # a dark picture of 8 bits
        ((RAMP > 2000).astype(int), (RAMP > 2000) * 255, "values up to 1: each times 255"),  # a mask
        (29_000 + RAMP // 3, None, "from 29000 to 30365: scaled to 0 to 255"),  # hundredths of a kelvin
        (np.where((X == 5) & (Y == 7), 65_535, RAMP), None, "up to 4095: read as 12 bits"),  # one hot pixel
        (np.zeros_like(X), np.zeros_like(X), ""),
        (np.full_like(X, 50_000), np.full_like(X, 195), ""),
    ],
)
def test_16_bits_are_seen_by_what_they_use_of_them(values: np.ndarray, expected: np.ndarray | None, said: str) -> None:
    files = [png(values), tiff(values, "<"), tiff(values, ">")]
    seen = [through(data) for data in files]
    for array, warning in seen:
        assert said in warning and bool(said) == bool(warning)
        assert np.array_equal(array, seen[0][0]), "the same, whatever the file"
        if expected is not None:
            assert np.array_equal(array[..., 0], expected)
        elif "scaled" in said:
            assert (array.min(), array.max()) == (0, 255)
        else:
            assert np.array_equal(np.delete(array[..., 0], 5, axis=1), np.delete(RAMP >> 4, 5, axis=1))


@pytest.mark.parametrize("order", ["<", ">"])
def test_signed_values_are_scaled_by_their_range(order: str) -> None:
    array, warning = through(tiff(RAMP - 1024, order, signed=True))
    assert warning == "-1024 to 3071 scaled to 0 to 255"
    assert (array.min(), array.max()) == (0, 255)
    assert np.abs(array[..., 0].astype(int) - (RAMP >> 4)).max() <= 1


@pytest.mark.parametrize("alpha", [65_535, 4095, None])
@pytest.mark.parametrize("colours", [COLOURS, RAMP[..., None]], ids=["colour", "grey"])
def test_colours_of_12_bits_in_16_are_seen(colours: np.ndarray, alpha: int | None) -> None:
    values = colours if alpha is None else np.concatenate([colours, np.full((48, 64, 1), alpha)], axis=2)
    array, warning = through(png(values))
    assert np.array_equal(array, np.broadcast_to(colours >> 4, (48, 64, 3)))
    assert "read as 12 bits" in warning
    assert through(png(values * 16 + 15)) == (pytest.approx(array), "")


# Metadata of a PNG


def with_chunk(name: bytes, body: bytes, data: bytes | None = None) -> bytes:
    """Behind the header of a picture."""
    data = data or plain()
    return data[:33] + chunk(name, body) + data[33:]


def plain() -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray((COLOURS >> 4).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "body"),
    [
        (b"zTXt", b"Comment\0\0" + zlib.compress(b"x" * 2_000_000)),
        (b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(b"x" * 2_000_000)),
        (b"iCCP", b"profile\0\0" + zlib.compress(bytes(2_000_000))),
        (b"iCCP", b"profile\0\7damaged"),
        (b"zTXt", b"Comment\0\7damaged"),
    ],
)
def test_text_and_profile_that_cannot_be_read_are_left_out(name: bytes, body: bytes) -> None:
    array, warning = through(with_chunk(name, body))
    assert np.array_equal(array, COLOURS >> 4)
    assert warning.startswith("text, colour profile and other metadata left out: they cannot be read (")
    damaged = bytearray(with_chunk(name, b"Comment\0short"))
    damaged[33 + 10] ^= 1  # the check sum tells
    assert np.array_equal(through(bytes(damaged))[0], COLOURS >> 4)


def test_what_turns_the_picture_is_kept_and_a_damaged_picture_is_refused() -> None:
    exif = PIL.Image.Exif()
    exif[274] = 6
    turned = with_chunk(b"eXIf", exif.tobytes()[6:])
    big = with_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"x" * 2_000_000), turned)
    assert decode_image(big, LIMITS).array.shape == (64, 48, 3)
    half = len(big) - len(plain()) // 2
    for broken in (big[:half], big[:half] + bytes(9) + big[half + 9 :]):
        with pytest.raises(MediaError, match="download it again"):
            decode_image(broken, LIMITS)


def jpeg(size: tuple[int, int], mode: str = "RGB", **options: object) -> bytes:
    random, buffer = np.random.default_rng(0), io.BytesIO()
    coarse = PIL.Image.fromarray(random.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    coarse.resize(size).convert(mode).save(buffer, "JPEG", **options)
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}], ids=str)
@pytest.mark.parametrize("size", [(640, 480), (601, 333), (300, 905), (50, 40)])
def test_a_jpeg_is_what_pillow_makes_of_it(size: tuple[int, int], mode: str, options: dict[str, object]) -> None:
    data = jpeg(size, mode, **options)
    for target in (None, 40, 224):
        expected = PIL.Image.open(io.BytesIO(data))
        if target is not None:
            expected.draft(None, (target, target))
        image = decode_image(data, LIMITS, target)
        np.testing.assert_array_equal(image.array, np.asarray(expected.convert("RGB")))
        assert (image.format, image.mode, image.width, image.height) == ("JPEG", mode, *size)
        assert image.warnings == ()


def test_a_jpeg_whose_end_is_a_guess_says_so() -> None:
    data = jpeg((640, 480))
    image = decode_image(data[: len(data) // 2] + b"\xff\xd9", LIMITS)
    assert image.array.shape == (480, 640, 3)
    (warning,) = image.warnings
    assert "damaged" in warning
    assert "premature end" in warning
    with pytest.raises(MediaError, match=r"truncated|damaged|cut"):
        decode_image(data[: len(data) // 2], LIMITS)
