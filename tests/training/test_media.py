"""Every damaged or odd file ends as a decoded picture, recording or text, or as one MediaError; nothing else."""

import csv
import io
import os
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps
import PIL.PngImagePlugin
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from training.images import decode_image
from training.media import SUFFIX_FORMATS, MediaError, decoding
from training.recordings import decode_speech
from training.settings import MediaLimits

LIMITS = MediaLimits()
DATA = Path(os.environ.get("TRIPTYCH_SHARED", Path(__file__).parents[2].parent / "shared" / "data"))
DIRTY = DATA / "dirty"


def photo(height: int = 48, width: int = 64) -> np.ndarray:
    """uint8 (H, W, 3), smooth, different in every quarter and channel."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 255 // width, y * 255 // height, (x + y) * 255 // (width + height)], axis=-1).astype(np.uint8)


def picture(format: str, image: PIL.Image.Image | None = None, **options: object) -> bytes:
    buffer = io.BytesIO()
    (image or PIL.Image.fromarray(photo())).save(buffer, format, **options)
    return buffer.getvalue()


def tone(rate: int = 8000, seconds: float = 0.25) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * 440 * np.arange(round(rate * seconds)) / rate)).astype(np.float32)


def audio(samples: np.ndarray, rate: int = 8000, format: str = "WAV", subtype: str | None = None) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=format, subtype=subtype)
    return buffer.getvalue()


def reason(decode: object, *arguments: object) -> str:
    with pytest.raises(MediaError) as caught:
        decode(*arguments)  # type: ignore[operator]
    assert len(str(caught.value)) > 10
    return caught.value.reason


# Images


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "PPM", "WEBP", "JPEG", "GIF"])
def test_formats_decode_to_the_same_picture(format: str) -> None:
    image = decode_image(picture(format, lossless=True), LIMITS)  # others than WebP ignore it
    assert (image.format, image.width, image.height, image.warnings) == (format, 64, 48, ())
    assert image.array.dtype == np.uint8
    error = np.abs(image.array.astype(int) - photo()).mean()
    assert error < {"JPEG": 4, "GIF": 12}.get(format, 1e-9)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "TIFF"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.5, 0.9])
def test_truncated_pictures_are_refused(format: str, share: float) -> None:
    data = picture(format)
    assert reason(decode_image, data[: int(len(data) * share)], LIMITS) in ("truncated", "corrupt", "unsupported")


def test_truncated_progressive_jpeg_is_refused() -> None:
    data = picture("JPEG", PIL.Image.fromarray(photo(480, 640)), progressive=True, quality=95)
    assert reason(decode_image, data[: len(data) // 2], LIMITS) == "truncated"
    assert reason(decode_image, data[: len(data) // 2], LIMITS, 32) == "truncated"


def test_one_flipped_bit_in_png_data_is_refused() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)  # stored, so only the CRC tells
    data = bytearray(picture("PNG", PIL.Image.fromarray(noise), compress_level=0))
    data[len(data) // 2] ^= 1
    assert reason(decode_image, bytes(data), LIMITS) == "corrupt"


def test_junk_after_the_end_changes_nothing() -> None:
    data = picture("JPEG")
    clean, junk = decode_image(data, LIMITS), decode_image(data + bytes(range(256)) * 16, LIMITS)
    assert np.array_equal(clean.array, junk.array)


def test_transparency_is_laid_on_white() -> None:
    rgba = np.zeros((4, 6, 4), dtype=np.uint8)
    rgba[:, 3:] = (10, 20, 30, 255)
    for image in (PIL.Image.fromarray(rgba), PIL.Image.fromarray(rgba).convert("RGBa").convert("RGBA").quantize(4)):
        array = decode_image(picture("PNG", image), LIMITS).array
        assert (array[:, :3] == 255).all()
        assert (array[:, 3:] == (10, 20, 30)).all()


def test_palette_grey_and_one_bit_are_expanded() -> None:
    assert decode_image(picture("GIF"), LIMITS).array.shape == (48, 64, 3)
    grey = photo()[..., 0]
    array = decode_image(picture("PNG", PIL.Image.fromarray(grey)), LIMITS).array
    assert (array == grey[..., None]).all()
    black_and_white = decode_image(picture("PNG", PIL.Image.fromarray(grey > 100)), LIMITS)
    assert black_and_white.mode == "1"
    assert set(np.unique(black_and_white.array)) == {0, 255}


def test_cmyk_becomes_rgb() -> None:
    image = decode_image(picture("JPEG", PIL.Image.new("CMYK", (16, 16), (0, 255, 255, 0)), quality=95), LIMITS)
    assert image.mode == "CMYK"
    assert np.abs(image.array.astype(int) - (255, 0, 0)).max() < 8


def test_sixteen_bits_keep_the_high_byte() -> None:
    values = np.array([[0, 255, 256, 32768, 65535]], dtype=np.uint16)
    for format in ("PNG", "TIFF"):
        array = decode_image(picture(format, PIL.Image.fromarray(values)), LIMITS).array
        assert array[0, :, 0].tolist() == [0, 0, 1, 128, 255]


def test_float_pictures_are_scaled_and_said_so() -> None:
    image = decode_image(picture("TIFF", PIL.Image.fromarray(np.array([[-1.0, 0.0, 1.0]], dtype=np.float32))), LIMITS)
    assert image.array[0, :, 1].tolist() == [0, 127, 255]
    assert "scaled" in image.warnings[0]
    broken = PIL.Image.fromarray(np.array([[0.0, np.nan]], dtype=np.float32))
    assert reason(decode_image, picture("TIFF", broken), LIMITS) == "corrupt"


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_stand_upright(format: str, orientation: int) -> None:
    exif = PIL.Image.Exif()
    exif[274] = orientation
    data = picture(format, exif=exif, lossless=True)  # others than WebP ignore it
    expected = np.asarray(PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(data))).convert("RGB"))
    image = decode_image(data, LIMITS)
    assert np.array_equal(image.array, expected)
    assert (image.height, image.width) == expected.shape[:2] == ((64, 48) if orientation > 4 else (48, 64))


def test_a_small_picture_decoded_in_part_keeps_the_size_of_the_whole() -> None:
    exif = PIL.Image.Exif()
    exif[274] = 6
    wide = PIL.Image.new("RGB", (807, 800))  # an eighth of it is square
    image = decode_image(picture("JPEG", wide, exif=exif), LIMITS, 100)
    assert (image.width, image.height) == (800, 807)
    assert image.array.shape == (101, 100, 3)


def test_unreadable_exif_is_a_warning() -> None:
    info = PIL.PngImagePlugin.PngInfo()
    info.add_text("Raw profile type exif", "\nexif\n4\nnot hexadecimal")
    image = decode_image(picture("PNG", pnginfo=info), LIMITS)
    assert image.array.shape == (48, 64, 3)
    assert "upright" in image.warnings[0]


def test_animation_gives_its_first_frame() -> None:
    frames = [PIL.Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    image = decode_image(picture("GIF", frames[0], save_all=True, append_images=frames[1:]), LIMITS)
    assert image.array[0, 0].tolist() == [255, 0, 0]
    assert "first of 2 frames" in image.warnings[0]


def png_header(width: int, height: int) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


def test_size_is_checked_before_decoding() -> None:
    assert reason(decode_image, png_header(20_000, 6_000), LIMITS) == "too_large"
    assert reason(decode_image, png_header(2**31 - 1, 2**31 - 1), LIMITS) == "too_large"
    assert reason(decode_image, picture("PNG"), MediaLimits(max_pixels=64 * 48 - 1)) == "too_large"
    assert decode_image(picture("PNG"), MediaLimits(max_pixels=64 * 48)).width == 64
    assert reason(decode_image, picture("PNG"), MediaLimits(max_bytes=100)) == "too_large"


def test_scaled_decoding_stays_above_the_target_and_keeps_the_original_size() -> None:
    data = picture("JPEG", PIL.Image.fromarray(photo(480, 640)))
    scaled = decode_image(data, LIMITS, 100)
    assert scaled.array.shape == (120, 160, 3)
    assert (scaled.width, scaled.height) == (640, 480)
    assert decode_image(data, LIMITS, 300).array.shape == (480, 640, 3)
    full = PIL.Image.fromarray(decode_image(data, LIMITS).array).resize((160, 120))
    assert np.abs(np.asarray(full).astype(int) - scaled.array).mean() < 2


def test_what_is_no_picture_says_what_it_is() -> None:
    assert reason(decode_image, b"", LIMITS) == "empty"
    with pytest.raises(MediaError, match="WAV cannot be read as a picture: convert it to JPEG or PNG"):
        decode_image(audio(tone()), LIMITS)
    with pytest.raises(MediaError, match="HEIC"):
        decode_image(b"\0\0\0\x18ftypheic" + b"\0" * 100, LIMITS)
    with pytest.raises(MediaError, match="SVG"):
        decode_image(b"<svg xmlns='http://www.w3.org/2000/svg'/>", LIMITS)


# Speech


@pytest.mark.parametrize(
    ("format", "subtype", "tolerance"),
    [
        ("WAV", "PCM_16", 1e-4), ("WAV", "PCM_24", 1e-6), ("WAV", "PCM_U8", 1e-2), ("WAV", "FLOAT", 1e-7),
        ("WAV", "DOUBLE", 1e-7), ("WAV", "ULAW", 0.03), ("FLAC", "PCM_16", 1e-4), ("AIFF", "PCM_16", 1e-4),
        ("AU", "PCM_16", 1e-4), ("CAF", "PCM_16", 1e-4), ("W64", "PCM_16", 1e-4), ("RF64", "PCM_16", 1e-4),
        ("OGG", "VORBIS", None), ("OGG", "OPUS", None), ("MP3", "MPEG_LAYER_III", None),
    ],
)  # fmt: skip
def test_formats_decode_to_the_same_sound(format: str, subtype: str, tolerance: float | None) -> None:
    speech = decode_speech(audio(tone(), 8000, format, subtype), LIMITS)
    assert (speech.sample_rate, speech.channels) == (8000, 1)
    assert speech.waveform.dtype == np.float32
    assert abs(float(speech.waveform.mean())) < 0.01  # 8 bits taken as signed would be off by half
    if tolerance is None:  # lossy: length within the padding of the encoder, loudness
        assert -0.05 < speech.seconds - 0.25 < 0.25
        assert abs(float(speech.waveform.std()) - float(tone().std())) < 0.1
    else:
        assert speech.warnings == ()
        assert np.abs(speech.waveform - tone()).max() < tolerance


def test_no_samples_is_refused_and_silence_is_said() -> None:
    assert reason(decode_speech, b"", LIMITS) == "empty"
    assert reason(decode_speech, audio(np.zeros(0, np.float32)), LIMITS) == "no_samples"
    silence = decode_speech(audio(np.zeros(100, np.float32)), LIMITS)
    assert silence.frames == 100
    assert "silence" in silence.warnings[0]


def test_a_cut_wav_gives_its_whole_frames() -> None:
    data = audio(tone())
    speech = decode_speech(data[: 44 + 1001], LIMITS)
    assert speech.frames == 500
    assert "500 frames decoded" in speech.warnings[0]
    assert np.abs(speech.waveform - tone()[:500]).max() < 1e-4


def test_a_header_shorter_than_the_data_is_followed() -> None:
    data = bytearray(audio(tone()))
    data[40:44] = struct.pack("<I", 2000)
    speech = decode_speech(bytes(data), LIMITS)
    assert speech.frames == 1000
    assert "disagree" in speech.warnings[0]


def test_a_header_that_promises_too_much_allocates_nothing() -> None:
    data = bytearray(audio(tone(), format="FLAC"))
    bits = int.from_bytes(data[18:26], "big")  # STREAMINFO: rate 20 bits, channels 3, depth 5, total samples 36
    data[18:26] = (bits | (2**36 - 1)).to_bytes(8, "big")
    assert reason(decode_speech, bytes(data), LIMITS) == "too_large"
    wide = MediaLimits(max_seconds=1e9)  # passes the header's check: what is there is decoded, with a warning
    speech = decode_speech(bytes(data), wide)
    assert speech.frames == 2000
    assert "announced" in speech.warnings[0]


def test_a_stream_of_unknown_length_is_read_to_its_end() -> None:
    data = bytearray(audio(tone(), format="FLAC"))
    data[18:26] = (int.from_bytes(data[18:26], "big") & ~(2**36 - 1)).to_bytes(8, "big")
    speech = decode_speech(bytes(data), LIMITS)
    assert (speech.frames, speech.warnings) == (2000, ())
    assert reason(decode_speech, bytes(data), MediaLimits(max_seconds=0.2)) == "too_large"


def test_duration_and_size_are_limited() -> None:
    assert decode_speech(audio(tone()), MediaLimits(max_seconds=0.25)).frames == 2000
    assert reason(decode_speech, audio(tone()), MediaLimits(max_seconds=0.24)) == "too_large"
    assert reason(decode_speech, audio(tone()), MediaLimits(max_bytes=1000)) == "too_large"


def test_samples_that_are_no_numbers_are_refused() -> None:
    for bad in (np.nan, np.inf):
        samples = tone()
        samples[7] = bad
        assert reason(decode_speech, audio(samples, subtype="FLOAT"), LIMITS) == "corrupt"


def test_samples_beyond_one_are_scaled() -> None:
    for factor in (4.0, 1e38):
        speech = decode_speech(audio(tone() * np.float32(factor), subtype="FLOAT"), LIMITS)
        assert float(np.abs(speech.waveform).max()) == pytest.approx(1)
        assert "scaled" in speech.warnings[0]
    loud = np.full((10, 2), 3e38, dtype=np.float32)  # whose sum is infinite
    assert decode_speech(audio(loud, subtype="FLOAT"), LIMITS).waveform.tolist() == pytest.approx([1.0] * 10)


def test_an_absurd_rate_is_refused() -> None:
    data = bytearray(audio(tone()))
    for rate in (0, 1, 4_000_000_000):
        data[24:28] = struct.pack("<I", rate)
        assert reason(decode_speech, bytes(data), LIMITS) == "corrupt"


def test_what_cannot_be_read_says_what_to_do() -> None:
    with pytest.raises(MediaError, match=r"M4A.*convert it to WAV or FLAC.*readable: WAV, FLAC, OGG.*MP3"):
        decode_speech(b"\0\0\0\x1cftypM4A " + b"\0" * 200, LIMITS)
    assert reason(decode_speech, picture("PNG"), LIMITS) == "unsupported"
    assert reason(decode_speech, b"just some text, not audio" * 50, LIMITS) == "unsupported"


# All of it


def tiny_files() -> list[bytes]:
    small = PIL.Image.fromarray(photo(8, 12))
    exif = PIL.Image.Exif()
    exif[274] = 6
    pictures = [picture(f, small) for f in ("PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM")]
    pictures += [picture("JPEG", small, exif=exif), picture("PNG", small.convert("RGBA").quantize(5))]
    pictures += [picture("TIFF", small, compression="tiff_lzw"), picture("JPEG", small, progressive=True)]
    sound = tone(8000, 0.02)
    sounds = [audio(sound, 8000, f) for f in ("WAV", "FLAC", "OGG", "MP3", "AIFF", "AU", "CAF")]
    pictures.append(picture("PNG", PIL.Image.fromarray(photo(8, 12)[..., 0].astype(np.uint16))))  # 8 bits in 16
    sounds += [audio(np.stack([sound, -sound], axis=1)), 2 * sounds[3], 2 * sounds[2], sounds[0][:40] + bytes(400)]
    return pictures + sounds + [audio(np.stack([sound, sound], axis=1), 8000, "WAV", "FLOAT"), "zwölf\n".encode()]


FILES = tiny_files()


@settings(max_examples=1500, deadline=None)
@given(
    data=st.sampled_from(FILES),
    end=st.floats(0, 1),
    cut=st.booleans(),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=4),
    near_start=st.booleans(),
)
def test_no_damage_raises_anything_but_media_error(
    data: bytes, end: float, cut: bool, flips: list[tuple[float, int]], near_start: bool
) -> None:
    damaged = bytearray(data)
    for where, value in flips:
        damaged[int(where * (min(64, len(damaged)) if near_start else len(damaged)))] = value
    raw = bytes(damaged[: int(end * len(damaged))] if cut else damaged)
    limits = MediaLimits(max_pixels=10**6, max_seconds=60)
    for decode in (decode_image, decode_speech):
        try:
            result = decode(raw, limits)
        except MediaError as error:
            assert error.reason in ("empty", "truncated", "corrupt", "unsupported", "too_large", "no_samples")
            assert len(error.message) <= 500 and error.message.isprintable()
            assert re.search("again|smaller|raise|convert it|0 bytes", error.message), "it says what to do"
            continue
        array = getattr(result, "array", getattr(result, "waveform", None))
        assert array is not None
        assert array.size > 0
        assert np.isfinite(array).all()


def test_a_message_is_one_short_line_without_media_bytes() -> None:
    bytes_as_text = "".join(map(chr, range(256))) * 1000
    error = MediaError("corrupt", f"a decoder said {bytes_as_text}\nand more: export it again")
    assert len(str(error)) <= 500 and str(error).isprintable()
    assert str(error).startswith("a decoder said") and str(error).endswith("and more: export it again")
    with pytest.raises(MediaError) as caught, decoding("picture"):
        raise ValueError(f"cannot use {bytes(range(256))!r}")
    assert caught.value.message == "the picture is corrupt (cannot use the data): export or download it again"


@pytest.mark.skipif(not DIRTY.is_dir(), reason=f"no folder {DIRTY} (set TRIPTYCH_SHARED)")
def test_the_dirty_folder_ends_as_expected() -> None:
    with (DIRTY / "expectations.csv").open(newline="", encoding="utf-8") as file:
        cases = [case for case in csv.DictReader(file) if case["modality"] in ("image", "audio")]
    assert len(cases) > 20
    frames = {"hdr_too_short.wav": 1736, "u8.wav": 3472, "s24.wav": 3472, "stereo.wav": 3472, "speech.flac": 3472}
    for case in cases:
        data, name = (DIRTY / case["file"]).read_bytes(), Path(case["file"]).name
        try:
            if case["modality"] == "image":
                image = decode_image(data, LIMITS)
                assert image.array.shape == ((28, 28, 3) if name == "png_named.jpg" else (256, 256, 3)), name
                warnings, kind = image.warnings, image.format
            else:
                speech = decode_speech(data, LIMITS)
                assert speech.frames == frames.get(name, speech.frames), name
                if name.startswith("speech."):
                    assert -0.05 < speech.seconds - 0.434 < 0.25, name
                if name == "u8.wav":
                    assert abs(float(speech.waveform.mean())) < 0.005
                    assert float(speech.waveform.std()) < 0.1  # read as signed it would be near 1
                warnings, kind = speech.warnings, speech.format
            is_named_so = kind in SUFFIX_FORMATS[Path(name).suffix]
            outcome = "decode_ok" if is_named_so and not warnings else "decode_ok_with_warning"
        except MediaError as error:
            outcome = "decode_ok_or_clear_unsupported" if error.reason == "unsupported" else "reject"
        assert outcome == case["expected"], f"{name}: {outcome}"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "git lfs pull"),
        (b"/annex/objects/SHA256E-s31390--f50d.png\n", "git annex get"),
        (b"../../.git/annex/objects/x/SHA256E-s31390--f50d.png", "copied as text"),
        (b"../blobs/4f7a2c", "copied as text"),
    ],
)
def test_what_stands_in_the_place_of_a_file_is_named(content: bytes, says: str) -> None:
    for decode in (decode_image, decode_speech):
        with pytest.raises(MediaError, match=says) as error:
            decode(content, LIMITS)
        assert error.value.reason == "unsupported"
