"""How MP3 files are laid out, as far as libsndfile does not see to it: tags, frames, and the frame that counts them.

A file begins with tags, then a frame without sound may count the others ("Xing", "Info" or "VBRI" in it), then frames
follow (ISO 11172-3, 13818-3; Layer III). libsndfile takes the length from the count, or guesses it from the first
frame; what lies behind it is lost without a word.
"""

import re
import struct

_FRAME = rb"\xff[\xe2-\xe7\xf2-\xf7\xfa-\xff]"  # how one begins
_BEGINS = re.compile(_FRAME)
# The count lies behind the side information of its frame, or where that of MPEG-1 stereo ends.
_COUNTING = re.compile(_FRAME + rb"..(?:(?:.{9}|.{17}|.{32})(?:Xing|Info)|.{32}VBRI)", re.DOTALL)
_ZEROS = re.compile(rb"\0+")
_KBPS = {  # by MPEG version, as the header writes it
    3: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_HZ = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}


def beginnings(data: bytes) -> list[int]:
    """Where further recordings begin, behind the first one."""
    if (audio := _next_frame(data, _after_tags(data, 0))) is None:
        return []
    counting = list(_COUNTING.finditer(data, audio))
    begins = {match.start() for match in counting}
    for match in counting:  # what follows behind the last frame that was counted may count none itself
        flags, frames, size = struct.unpack(">III", data[match.end() : match.end() + 12].ljust(12, b"\0"))
        if flags & 3 != 3 or not frames:
            continue
        end = _after_tags(data, match.start() + size)
        following = min((begin for begin in begins if begin > match.start()), default=len(data))
        if following - end > 2 * size / frames and _next_frame(data, end) == end:
            begins.add(end)
    return sorted(begin for begin in begins if begin > audio)


def counted(data: bytes) -> bytes:
    """A recording without tags, with a frame that counts the others, so that its length is not guessed."""
    start = _next_frame(data, _after_tags(data, 0))
    if start is None:
        return data
    if _COUNTING.match(data, start):
        return data[start:]
    frames = 0
    position: int | None = start
    while position is not None:
        while size := _frame_size(data, position):
            frames, position = frames + 1, position + size
        position = _next_frame(data, _after_tags(data, position))
    header = bytes([0xFF, data[start + 1] | 1, data[start + 2] & 0x0C | 0x90, data[start + 3]])  # without check sum
    mono, mpeg1 = header[3] >> 6 == 3, header[1] >> 3 & 3 == 3
    side = (17 if mono else 32) if mpeg1 else (9 if mono else 17)
    count = header + bytes(side) + b"Xing" + struct.pack(">II", 1, frames)
    return count.ljust(_frame_size(count, 0), b"\0") + data[start:]


def _next_frame(data: bytes, position: int) -> int | None:
    """Where a frame begins that another one follows: a header alone may be anything."""
    for match in _BEGINS.finditer(data, position):
        start = match.start()
        if (size := _frame_size(data, start)) and (_frame_size(data, start + size) or start + size == len(data)):
            return start
    return None


def _frame_size(data: bytes, position: int) -> int:
    """Bytes of the Layer III frame there; 0: none."""
    header = data[position : position + 4]
    if len(header) < 4 or not _BEGINS.match(header) or header[1] >> 1 & 3 != 1:
        return 0
    version, rate, bits = header[1] >> 3 & 3, header[2] >> 2 & 3, header[2] >> 4
    if rate == 3 or bits in (0, 15):
        return 0
    kbps = _KBPS[3 if version == 3 else 2][bits]
    return (144_000 if version == 3 else 72_000) * kbps // _HZ[version][rate] + (header[2] >> 1 & 1)


def _after_tags(data: bytes, position: int) -> int:
    """The first byte behind tags (ID3, APE) and zeros."""
    while True:
        if data.startswith(b"TAG", position):
            position += 128
        elif data.startswith(b"APETAGEX", position):
            position += 32 + int.from_bytes(data[position + 12 : position + 16], "little")
        elif data.startswith(b"ID3", position):
            size = data[position + 6 : position + 10]
            position += 10 + sum((byte & 0x7F) << 7 * (3 - n) for n, byte in enumerate(size))
        elif zeros := _ZEROS.match(data, position):
            position = zeros.end()
        else:
            return position
