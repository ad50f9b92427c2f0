"""Mutated copies of real files, and of small ones of every format: each ends as a row or in quarantine with its reason.

make soak      # 10,000 of them; the default suite takes some hundred
"""

import hashlib
import io
import itertools
import os
import random
import re
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from assets import decoder
from assets.decoder import decode_each
from assets.scan import scan
from assets.source_settings import SourceSettings
from assets.sources.base import SourceError
from training.images import Image
from training.media import MediaError
from training.modalities.base import Modality
from training.modalities.image import ImageModality
from training.modalities.speech import SpeechModality
from training.recordings import Speech
from training.settings import MediaLimits

DATA = Path(os.environ.get("TRIPTYCH_SHARED", Path(__file__).parents[2] / "shared" / "data"))
LIMITS = MediaLimits(max_decode_seconds=20, max_decode_memory=2**29)
REASONS = {"empty", "truncated", "corrupt", "unsupported", "too_large", "too_slow", "no_samples"}
PICTURES, SOUNDS = {".png", ".jpg", ".jpeg", ".gif", ".webp", ".tif"}, {".wav", ".mp3", ".ogg", ".flac", ".m4a"}
CONTAINERS = {".tar", ".zip", ".csv", ".tsv", ".jsonl", ".json", ".parquet", ".xlsx"}
_LARGEST = 2**20  # bytes of what is mutated
COUNTS = [pytest.param(150), pytest.param(5000, marks=pytest.mark.soak)]


def mutated(data: bytes, chance: random.Random) -> bytes:
    """One to four changes: of bits, bytes and numbers; blocks doubled, moved, left out or zeroed; the end cut off."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        length = max(len(changed), 1)
        start = chance.randrange(min(length, 100) if chance.random() < 0.5 else length)
        end = min(start + int(chance.expovariate(1 / 40)) + 1, length)
        block = changed[start:end]
        match chance.randrange(8):
            case 0:
                changed[start:end] = bytes(b ^ 1 << chance.randrange(8) for b in block[:1]) + block[1:]
            case 1:
                changed[start:end] = chance.randbytes(end - start)
            case 2:
                number = chance.choice([0, 1, 2**7, 2**8 - 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1])
                changed[start : start + 4] = number.to_bytes(4, chance.choice(["little", "big"]))
            case 3:
                changed[start:start] = block * chance.randint(1, 20)
            case 4:
                del changed[start:end]
            case 5:
                changed[start:end] = bytes(end - start)
            case 6:
                to = chance.randrange(length)
                changed[to : to + len(block)] = block
            case 7:
                del changed[start + chance.randrange(length - start) :]
    return bytes(changed)


def media() -> Iterator[tuple[str, bytes]]:
    """Small pictures and recordings of every format, by suffix."""
    numbers = np.random.default_rng(0)
    picture = PIL.Image.fromarray(numbers.integers(0, 256, (24, 32, 3), np.uint8))
    for format in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "AVIF", "JPEG2000"):
        file = io.BytesIO()
        picture.save(file, format)
        yield ".png", file.getvalue()
    for format in ("WAV", "FLAC", "OGG", "MP3", "AIFF", "AU", "CAF", "W64"):
        file = io.BytesIO()
        soundfile.write(file, numbers.normal(0, 0.1, 2000), 8000, format=format)
        yield ".wav", file.getvalue()


def containers(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Small tables and archives, by suffix."""
    rows = [{"id": f"q{n}", "text": f"Frage {n}?", "answer": "ja", "time": f"2024-05-0{n + 1}"} for n in range(6)]
    table = folder / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(rows), table)
    yield ".parquet", table.read_bytes()
    lines = [",".join(row.values()) for row in rows]
    yield ".csv", "\n".join(["id,text,answer,time", *lines]).encode()
    yield ".jsonl", "\n".join(str(row).replace("'", '"') for row in rows).encode()
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for n, (suffix, data) in enumerate(media()):
            archive.writestr(f"{n}{suffix}", data)
    yield ".zip", file.getvalue()


def real(suffixes: set[str]) -> list[tuple[str, bytes]]:
    paths = sorted(path for path in DATA.rglob("*") if path.suffix.lower() in suffixes and path.is_file())
    return [(path.suffix.lower(), path.read_bytes()[:_LARGEST]) for path in paths]


def drawn(files: Sequence[tuple[str, bytes]], count: int) -> list[tuple[str, bytes]]:
    """Every suffix as often as the others; which change is the same in every run."""
    chance, of = random.Random(count), dict[str, list[bytes]]()
    for suffix, data in files:
        of.setdefault(suffix, []).append(data)
    chosen = [(suffix, chance.choice(of[suffix])) for _, suffix in zip(range(count), itertools.cycle(of), strict=False)]
    return [(suffix, checked(mutated(data, chance), chance)) for suffix, data in chosen]


def checked(data: bytes, chance: random.Random) -> bytes:
    """Half of the PNGs with checksums that are right: else nothing gets beyond them."""
    if not data.startswith(b"\x89PNG") or chance.random() < 0.5:
        return data
    position, chunks = 8, [data[:8]]
    while position + 12 <= len(data):
        size = int.from_bytes(data[position : position + 4], "big")
        body = data[position + 4 : position + 8 + size]
        chunks += [data[position : position + 4], body, zlib.crc32(body).to_bytes(4, "big")]
        position += 12 + size
    return b"".join(chunks)


@pytest.mark.parametrize("count", COUNTS)
def test_every_mutated_picture_and_recording_has_an_outcome(count: int) -> None:
    files = drawn([*media(), *real(PICTURES | SOUNDS)], count)
    for modality, suffixes in ((ImageModality(), PICTURES), (SpeechModality(), SOUNDS)):
        chosen = [data for suffix, data in files if suffix in suffixes]
        answers = decode_each(modality, ((data, None) for data in chosen), LIMITS)
        for data, answer in zip(chosen, answers, strict=True):
            what = f"{modality.name} {hashlib.sha256(data).hexdigest()}"
            check(modality, answer, what)
    peaks = [peak(child) for child in decoder._idle if child.owner == os.getpid()]
    assert peaks and max(peaks) < LIMITS.max_decode_memory + 2**28


def peak(child: Any) -> int:
    """Bytes that a decoder has had at most."""
    said = re.search(r"VmHWM:\s*(\d+) kB", Path(f"/proc/{child._process.pid}/status").read_text())
    assert said
    return int(said[1]) * 1024


def check(modality: Modality, answer: Any, what: str) -> None:
    if isinstance(answer, MediaError):
        assert answer.reason in REASONS, what
        assert len(answer.message) <= 500 and answer.message.isprintable(), what
        return
    assert isinstance(answer, Image | Speech), f"{what}: {answer!r}"
    values = answer.array if isinstance(answer, Image) else answer.waveform
    assert values.size and np.isfinite(values).all(), what
    assert modality.describe(answer), what


@pytest.mark.parametrize("count", COUNTS)
def test_every_mutated_table_and_archive_is_listed_or_refused(count: int, tmp_path: Path) -> None:
    for n, (suffix, data) in enumerate(drawn([*containers(tmp_path), *real(CONTAINERS)], count)):
        path = tmp_path / f"{n}{suffix}"
        path.write_bytes(data)
        is_table = suffix not in (".tar", ".zip")
        place = {"table": path.name, "column": "text", "key": "id"} if is_table else {"files": path.name}
        settings = SourceSettings.of(name="fuzzed", modality="text" if is_table else "image", **place)
        what = f"{suffix} {hashlib.sha256(data).hexdigest()}"
        try:
            found = scan(settings, tmp_path, None, LIMITS)
        except SourceError as error:
            assert path.name in str(error) and len(str(error)) < 2000, what
            continue
        finally:
            path.unlink()
        assert found.seen == found.rows.num_rows + found.quarantine.num_rows, what
        assert all(found.quarantine["reason"].to_pylist()) and all(found.quarantine["message"].to_pylist()), what
