"""Decodes pictures that nobody vouches for, with Pillow (`training.media` says what that means).

Headers are checked against `MediaLimits` before anything is decoded or allocated.

Shapes: H, W rows and columns.
"""

import contextlib
import dataclasses
import functools
import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import PIL.ExifTags
import PIL.Image

from training.crops import Crop
from training.media import MediaError, check_size, decoding, too_large, unknown_format, words
from training.settings import MediaLimits

# Raster formats that Pillow decodes by itself; others (EPS runs Ghostscript, SVG is a program) are refused.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "DIB", "WEBP", "TIFF", "PPM", "AVIF", "JPEG2000")
_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_KEPT = (b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"IDAT", b"IEND")  # what decides pixels, and how they lie
# Pillow keeps the high byte of 16-bit colours; in another byte order it takes the low one for it.
_OTHER_BYTE = {
    "RGB;16B": "RGB;16L", "RGB;16L": "RGB;16B", "RGB;16N": "RGB;16B",
    "RGBA;16B": "RGBA;16L", "RGBA;16L": "RGBA;16B", "RGBA;16N": "RGBA;16B",
}  # fmt: skip
_GREY_WITH_ALPHA = "LA;16B"
_STRIP = 2**22  # pixels that are converted at once
# EXIF orientation -> whether the upright picture is mirrored up and down, and left and right; from 5 on after rows and
# columns have changed places.
_MIRRORED = {
    1: (False, False), 2: (False, True), 3: (True, True), 4: (True, False),
    5: (False, False), 6: (False, True), 7: (True, True), 8: (True, False),
}  # fmt: skip
_FEW_LEVELS = 32  # of 256: values that fill less of their bit depth are told apart by their own range


@dataclass(frozen=True)
class Image:
    array: np.ndarray  # uint8 (H, W, 3) RGB, upright
    format: str
    mode: str  # Pillow's, as stored: RGB, L, P, CMYK, ...
    width: int  # of the upright original; `array` may be smaller (`target`)
    height: int
    warnings: tuple[str, ...] = ()
    orientation: int = 1  # EXIF's number for how the stored picture was turned to be upright
    x: int = 0  # pixels from the left edge of the picture that it is a part of, to its own
    y: int = 0  # from the upper edge

    @functools.cached_property
    def luminances(self) -> np.ndarray:
        """How many pixels have each luminance from 0 to 255 (256,), as ITU-R BT.601 weighs the colours."""
        return np.array(PIL.Image.fromarray(self.array).convert("L").histogram())

    def part(self, cut: str) -> "Image":
        """A crop of it (`training.crops`), of a picture that was decoded whole. Raises MediaError where there is none.

        What is not coloured is no copy of its pixels.
        """
        assert self.array.shape[:2] == (self.height, self.width), "parts are cut out of all pixels"
        crop = Crop.of_cut(cut)
        place, said = crop.place(self.width, self.height, self.orientation)
        array = crop.taken(self.array, place, self.orientation)
        height, width = array.shape[:2]
        warnings = (*self.warnings, *said)
        return dataclasses.replace(
            self, array=array, width=width, height=height, warnings=warnings, x=place.left, y=place.top
        )


def decode_image(data: bytes, limits: MediaLimits, target: int | None = None) -> Image:
    """Upright 8-bit RGB of any supported picture; of an animation its first frame.

    Alpha is composited on white; palettes are expanded; CMYK is converted without its colour profile. 16-bit values
    become their high byte; where they use less (12 bits, millimetres), they are scaled by what they use, as 32-bit and
    float grey are by their range, with a warning. A PNG whose text or colour profile cannot be read is read without,
    with a warning. A JPEG much larger than `target` (the wanted short side in pixels) is decoded at 1/2, 1/4 or 1/8 of
    its size, never below `target`. Raises MediaError.
    """
    check_size(data, limits)
    try:
        return _decode(data, limits, target)
    except MediaError as error:
        if error.reason == "too_large" or (bare := _without_metadata(data)) is None:
            raise
        with contextlib.suppress(MediaError):
            image = _decode(bare, limits, target)
            why = words(error.__cause__) if isinstance(error.__cause__, Exception) else str(error)
            left_out = f"text, colour profile and other metadata left out: they cannot be read ({why})"
            return dataclasses.replace(image, warnings=(*image.warnings, left_out))
        raise


def _decode(data: bytes, limits: MediaLimits, target: int | None) -> Image:
    with _decoding():
        image = _open(data)
    image_format, mode, (width, height) = str(image.format), image.mode, image.size
    if width * height > limits.max_pixels:
        raise too_large(f"{width}x{height} pixels", "max_pixels", limits.max_pixels)
    warnings: list[str] = []
    turned = _orientation(image, []) if image_format == "TIFF" else 1  # Pillow turns it by itself, and forgets
    with _decoding():
        if (frames := getattr(image, "n_frames", 1)) > 1:
            warnings.append(f"first of {frames} frames used")
        if image_format == "PNG":  # decoding alone checks no CRC, and an image that was verified cannot be decoded
            PIL.Image.open(io.BytesIO(data), formats=("PNG",)).verify()
        rgb_HWC = _jpeg(image, data, target, warnings)
        if rgb_HWC is None:
            if target is not None:
                image.draft(None, (target, target))
            rgb_HWC = _pixels(_loaded(image, data, warnings), warnings)
    orientation = 1 if image_format == "TIFF" else _orientation(image, warnings)
    if orientation > 4:  # it lies on its side
        width, height = height, width
    upright_HWC = _upright(rgb_HWC, orientation)
    return Image(upright_HWC, image_format, mode, width, height, tuple(warnings), max(turned, orientation))


def _jpeg(image: PIL.Image.Image, data: bytes, target: int | None, warnings: list[str]) -> np.ndarray | None:
    """The pixels of a JPEG, exactly as Pillow decodes them (to a scale, too), in two thirds of the time; None: Pillow
    has to.

    Damage that libjpeg mends by guessing, of which Pillow says nothing, becomes a warning.
    """
    if image.format != "JPEG" or image.mode not in ("RGB", "L"):
        return None
    import simplejpeg

    most = min(image.size) // target if target else 1
    scale = next(scale for scale in (8, 4, 2, 1) if scale <= max(most, 1))  # those that Pillow knows
    width, height = (-(-length // scale) for length in image.size)
    try:
        return simplejpeg.decode_jpeg(data, "RGB", min_height=height, min_width=width, strict=True)
    except ValueError as error:
        warnings.append(f"damaged, and decoded as far as possible ({words(error)})")
        return None


@contextlib.contextmanager
def _decoding() -> Iterator[None]:
    with decoding("picture"):
        try:
            yield
        except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning) as error:
            raise MediaError("too_large", f"{words(error)}: make the picture smaller") from error


def _open(data: bytes) -> PIL.Image.Image:
    try:
        return PIL.Image.open(io.BytesIO(data), formats=_readable())
    except PIL.UnidentifiedImageError as error:
        raise unknown_format(data, "a picture", FORMATS, "JPEG or PNG") from error


@functools.cache
def _readable() -> tuple[str, ...]:
    """Those of FORMATS that this build of Pillow has."""
    PIL.Image.init()
    return tuple(name for name in FORMATS if name in PIL.Image.OPEN)


def _without_metadata(data: bytes) -> bytes | None:
    """A PNG without what is no part of the picture; None: it has nothing of the kind, or its chunks are cut."""
    if not data.startswith(_PNG_START):
        return None
    kept, position, name = [_PNG_START], len(_PNG_START), b""
    while position < len(data) and name != b"IEND":
        if position + 12 > len(data):
            return None
        size, name = struct.unpack_from(">I4s", data, position)
        chunk = data[position : position + size + 12]
        if len(chunk) < size + 12:
            return None
        whole = int.from_bytes(chunk[-4:], "big") == zlib.crc32(chunk[4:-4])
        if name in _PNG_KEPT and (whole or name != b"eXIf"):
            kept.append(chunk)
        position += len(chunk)
    bare = b"".join(kept)
    return bare if name == b"IEND" and len(bare) < position else None


def _orientation(image: PIL.Image.Image, warnings: list[str]) -> int:
    """How EXIF says that the stored picture is turned: 1 (upright) to 8."""
    try:
        with decoding("EXIF header", "write it anew, or leave it out"):
            orientation = image.getexif().get(PIL.ExifTags.Base.Orientation)
            return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1
    except MediaError as error:
        warnings.append(f"taken as upright: {error}")
        return 1


def _upright(rgb_HWC: np.ndarray, orientation: int) -> np.ndarray:
    on_its_side = orientation > 4
    turned_HWC = rgb_HWC.transpose(1, 0, 2) if on_its_side else rgb_HWC
    up_down, left_right = _MIRRORED[orientation]
    return np.ascontiguousarray(turned_HWC[:: -1 if up_down else 1, :: -1 if left_right else 1])


def _pixels(image: PIL.Image.Image, warnings: list[str]) -> np.ndarray:
    """uint8 (H, W, 3). In strips, since each step between Pillow's pixels and these would be another whole picture."""
    if image.mode.startswith("I") or image.mode == "F":
        return np.repeat(_grey(np.asarray(image), warnings)[..., None], 3, axis=2)
    rows, (width, height) = max(1, _STRIP // image.width), image.size
    if rows >= height:
        return np.asarray(_to_rgb(image))
    rgb_HWC = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, rows):
        rgb_HWC[top : top + rows] = np.asarray(_to_rgb(image.crop((0, top, width, min(top + rows, height)))))
    return rgb_HWC


def _to_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return PIL.Image.alpha_composite(PIL.Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


# More than 8 bits


def _grey(values_HW: np.ndarray, warnings: list[str]) -> np.ndarray:
    """Grey of 16 bits, 32 bits or float, as uint8."""
    if not np.isfinite(values_HW).all():
        raise MediaError("corrupt", "the picture has values that are not finite: replace them, and export it again")
    if values_HW.dtype.kind != "f" and values_HW.min() >= 0 and values_HW.max() < 2**16:
        return _eight_bits(values_HW.astype(np.uint16), warnings)
    low, high = _range(values_HW)
    warnings.append(f"{low:g} to {high:g} scaled to 0 to 255")
    return _stretched(values_HW, low, high)


def _eight_bits(values: np.ndarray, warnings: list[str]) -> np.ndarray:
    """uint16 values as uint8, by the bit depth that they use: the high byte where they use all 16 bits.

    A depth is a power of two, so that pictures from one device are mostly scaled alike.
    """
    low, high = _range(values)
    bits = int(high).bit_length()
    if 4 < bits < 8:
        bits = 8  # a picture of 8 bits that is dark
    said = f"16-bit values up to {int(high)}"
    if bits <= 4:  # classes, masks: no picture of 8 bits is that dark
        factor = 255 // max(2**bits - 1, 1)
        if bits:
            warnings.append(f"{said}: each times {factor}")
        return np.minimum(values, 2**bits - 1).astype(np.uint8) * np.uint8(factor)
    shift = bits - 8
    if 0 < int(high - low) >> shift < _FEW_LEVELS and shift:  # signed values with an offset, temperatures
        warnings.append(f"16-bit values from {int(low)} to {int(high)}: scaled to 0 to 255")
        return _stretched(values, low, high)
    if bits < 16:
        warnings.append(f"{said}: read as {bits} bits" + (f", divided by {2**shift}" if shift else ", as they are"))
    return np.minimum(values >> shift, 255).astype(np.uint8)


def _range(values: np.ndarray) -> tuple[np.number, np.number]:
    """Smallest and largest value, but for a thousandth at either end: hot and dead pixels."""
    flat = values.ravel()
    extremes = max(flat.size // 1000, 1) if flat.size >= 100 else 0
    ends = np.partition(flat, (extremes, flat.size - 1 - extremes))
    return ends[extremes], ends[-1 - extremes]


def _stretched(values: np.ndarray, low: np.number, high: np.number) -> np.ndarray:
    wide = values.astype(np.float64)
    scaled = (wide - low) * (255 / (float(high) - float(low))) if high > low else np.zeros_like(wide)
    return np.clip(scaled, 0, 255).astype(np.uint8)


def _loaded(image: PIL.Image.Image, data: bytes, warnings: list[str]) -> PIL.Image.Image:
    """The decoded picture; colours of 16 bits that use few of them are scaled as grey is."""
    raw = _raw_mode(image)
    image.load()
    if raw not in _OTHER_BYTE and raw != _GREY_WITH_ALPHA:
        return image
    colours, alpha = np.asarray(image)[..., :3], np.asarray(image)[..., 3:]
    if _range(colours)[1] >= 128:
        return image
    low_bytes = _open(data)
    if raw == _GREY_WITH_ALPHA:  # four bytes a pixel, taken as they are: grey and alpha, the high byte first
        _set_raw_mode(low_bytes, "RGBA")
        planes = np.asarray(low_bytes)
        low_colours, low_alpha = np.repeat(planes[..., 1:2], 3, axis=2), planes[..., 3:]
    else:
        _set_raw_mode(low_bytes, _OTHER_BYTE[raw])
        low_colours, low_alpha = np.asarray(low_bytes)[..., :3], np.asarray(low_bytes)[..., 3:]
    parts = [_eight_bits(colours.astype(np.uint16) << 8 | low_colours, warnings)]
    if alpha.size:
        parts.append(_eight_bits(alpha.astype(np.uint16) << 8 | low_alpha, []))
    return PIL.Image.fromarray(np.concatenate(parts, axis=2))


def _raw_mode(image: PIL.Image.Image) -> str:
    """How the decoder is told that the file lays out its pixels."""
    tiles = getattr(image, "tile", None)
    arguments = tiles[0].args if tiles else None
    mode = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return mode if isinstance(mode, str) else ""


def _set_raw_mode(image: PIL.Image.Image, raw: str) -> None:
    image.tile = [  # type: ignore[attr-defined]
        tile._replace(args=(raw, *tile.args[1:]) if isinstance(tile.args, tuple) else raw)
        for tile in image.tile  # type: ignore[attr-defined]
    ]
