"""Near duplicates that are found of those planted, what is told without being planted, and what it costs.

    python -m benchmarks.near_duplicates [--data ../shared/data] [--quick] [--half second]

Of each set of real media one half was looked at to choose thresholds (`--half first`), the other is what counts. Items
of a half are planted once in each way: kept in another format, made smaller or larger, cropped by up to a tenth of a
side, at another pitch (5 %), speed (5 %) or level, with light noise. A line for each set and way: `found` of `planted`,
and the similarity that 95 % of them reach. A line for each set alone: `pairs` told among `contents` that nobody
planted, with `examples` to look at, since real sets hold real ones; and microseconds an item to sign it and to decide,
beside those to decode, clean and featurize it with the default features.
"""

import functools
import io
import json
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from assets.near_duplicates import alike
from benchmarks import measure
from training.catalog import SIGNATURES
from training.family import Choice
from training.features import FeatureSettings
from training.media import MediaError
from training.processor import Processor
from training.settings import MediaLimits

_SETS = {
    "clothing": ("image", "clothing/images.tar"),
    "medical": ("image", "medical/xrays.tar"),
    "traffic": ("image", "traffic/frames_jpg.tar"),
    "handwriting": ("image", "spoken_digits/handwriting.tar"),
    "smart_home": ("speech", "smart_home/orders.tar"),
    "spoken_digits": ("speech", "spoken_digits/recordings.tar"),
    "digits3": ("speech", "digits3/speech.tar"),
    "noise": ("speech", "noise/clips.tar"),
    "commands": ("text", "smart_home/commands.txt"),
}
_KINDS = {"image": "perceptual_hash", "speech": "acoustic", "text": "minhash"}
_MOST = 80  # items that are planted of a set

Plant = Callable[[Any], bytes]


# Pictures


def _saved(picture: Any, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.convert("RGB").save(file, kind, **options)
    return file.getvalue()


def _scaled(picture: Any, factor: float) -> Any:
    import PIL.Image

    return picture.resize([max(1, round(side * factor)) for side in picture.size], PIL.Image.Resampling.BICUBIC)


def _cropped(picture: Any, left: float, top: float, right: float, bottom: float) -> Any:
    width, height = picture.size
    return picture.crop(
        (round(left * width), round(top * height), round((1 - right) * width), round((1 - bottom) * height))
    )


def _noisy(picture: Any) -> Any:
    import PIL.Image

    pixels = np.asarray(picture.convert("RGB"), np.float32)
    pixels = pixels + np.random.default_rng(0).normal(0, 6, pixels.shape)
    return PIL.Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _images(random: np.random.Generator) -> dict[str, Plant]:
    across, down, share = random.uniform(0, 0.1), random.uniform(0, 0.1), random.uniform(0, 1, 2)
    anywhere = across * share[0], down * share[1], across * (1 - share[0]), down * (1 - share[1])
    side = np.roll([0.1, 0, 0, 0], random.integers(4)).tolist()
    return {
        "JPEG 40": lambda p: _saved(p, "JPEG", quality=40),
        "JPEG 75": lambda p: _saved(p, "JPEG", quality=75),
        "WebP 60": lambda p: _saved(p, "WEBP", quality=60),
        "half as large": lambda p: _saved(_scaled(p, 0.5), "JPEG", quality=90),
        "0.7 as large": lambda p: _saved(_scaled(p, 0.7), "PNG"),
        "twice as large": lambda p: _saved(_scaled(p, 2), "JPEG", quality=90),
        "a tenth cut off a side": lambda p: _saved(_cropped(p, *side), "PNG"),
        "a tenth cut off a corner": lambda p: _saved(_cropped(p, 0.1, 0.1, 0, 0), "PNG"),
        "a twentieth cut off all sides": lambda p: _saved(_cropped(p, 0.05, 0.05, 0.05, 0.05), "PNG"),
        "up to a tenth cut off, JPEG 80": lambda p: _saved(_cropped(p, *anywhere), "JPEG", quality=80),
        "brighter": lambda p: _saved(p.convert("RGB").point(lambda v: min(255, int(v * 1.15 + 8))), "PNG"),
        "noise": lambda p: _saved(_noisy(p), "PNG"),
    }


# Recordings: a waveform and its rate


def _written(sound: tuple[np.ndarray, int], kind: str = "WAV", subtype: str = "PCM_16", **options: Any) -> bytes:
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, np.clip(sound[0], -1, 1), sound[1], format=kind, subtype=subtype, **options)
    return file.getvalue()


def _faster(sound: tuple[np.ndarray, int], factor: float) -> tuple[np.ndarray, int]:
    """As a tape: pitch and length change."""
    import soxr

    return soxr.resample(sound[0], sound[1] * factor, sound[1]), sound[1]


def _resampled(sound: tuple[np.ndarray, int], rate: int) -> tuple[np.ndarray, int]:
    import soxr

    return soxr.resample(*sound, rate), rate


def _shorter(sound: tuple[np.ndarray, int], factor: float) -> tuple[np.ndarray, int]:
    """Pitch stays: pieces overlap where they fit best (WSOLA, Verhelst and Roelands 1993)."""
    wave, rate = sound
    size, search = 2 * round(0.015 * rate), round(0.008 * rate)
    window = np.hanning(size + 1)[:-1]
    padded = np.pad(wave, (search, 2 * size + search))
    (out, weight), before = np.zeros((2, int(len(wave) / factor) + 2 * size)), None
    for start in range(0, int(len(wave) / factor), size // 2):
        place = min(round(start * factor), len(wave)) + search
        if before is not None:
            wanted = padded[before + size // 2 : before + size // 2 + size]
            near = np.lib.stride_tricks.sliding_window_view(padded[place - search : place + search + size], size)
            place += int((near[:, : len(wanted)] @ wanted).argmax()) - search
        out[start : start + size] += window * padded[place : place + size]
        weight[start : start + size] += window
        before = min(place, len(padded) - 2 * size)
    length = max(1, round(len(wave) / factor))
    return (out[:length] / np.maximum(weight[:length], 0.1)).astype(np.float32), rate


def _louder(sound: tuple[np.ndarray, int], decibels: float) -> tuple[np.ndarray, int]:
    """As far as there is room above."""
    return sound[0] * min(10 ** (decibels / 20), 0.99 / max(np.abs(sound[0]).max(), 1e-6)), sound[1]


def _hissing(sound: tuple[np.ndarray, int]) -> tuple[np.ndarray, int]:
    noise = np.random.default_rng(0).standard_normal(len(sound[0])) * np.sqrt(np.square(sound[0]).mean()) / 10
    return (sound[0] + noise).astype(np.float32), sound[1]


def _recordings(random: np.random.Generator) -> dict[str, Plant]:
    start, end = random.uniform(0, 0.05, 2)
    return {
        "MP3": lambda s: _written(s, "MP3", "MPEG_LAYER_III", compression_level=0.6),
        "Ogg Vorbis": lambda s: _written(s, "OGG", "VORBIS", compression_level=0.8),
        "8 to 16 kHz or back": lambda s: _written(_resampled(s, 16000 if s[1] <= 8000 else 8000)),
        "5 % faster": lambda s: _written(_faster(s, 1.05)),
        "5 % slower": lambda s: _written(_faster(s, 0.95)),
        "5 % faster, same pitch": lambda s: _written(_shorter(s, 1.05)),
        "5 % slower, same pitch": lambda s: _written(_shorter(s, 0.95)),
        "pitch 5 % higher": lambda s: _written(_faster(_shorter(s, 1 / 1.05), 1.05)),
        "pitch 5 % lower": lambda s: _written(_faster(_shorter(s, 1.05), 1 / 1.05)),
        "12 dB softer": lambda s: _written(_louder(s, -12)),
        "up to 12 dB louder": lambda s: _written(_louder(s, 12)),
        "noise 20 dB below": lambda s: _written(_hissing(s)),
        "up to a twentieth cut off both ends": lambda s: _written(
            (s[0][int(start * len(s[0])) : int((1 - end) * len(s[0]))], s[1])
        ),
    }


# Texts


def _texts(random: np.random.Generator) -> dict[str, Plant]:
    return {
        "upper case": lambda t: t.upper().encode(),
        "other white space and punctuation": lambda t: (
            "  " + t.replace(" ", " \t").replace(",", " ;") + " ..."
        ).encode(),
        "a word more": lambda t: f"{t} please".encode(),
    }


_WAYS = {"image": _images, "speech": _recordings, "text": _texts}


def _opened(modality: str, data: bytes) -> Any:
    if modality == "image":
        import PIL.Image

        return PIL.Image.open(io.BytesIO(data)).convert("RGB")
    if modality == "text":
        return data.decode()
    from training.recordings import decode_speech

    speech = decode_speech(data, MediaLimits())
    return speech.waveform, speech.sample_rate


def _items(path: Path) -> Iterator[tuple[str, bytes]]:
    if path.suffix == ".txt":
        yield from ((line, line.encode()) for line in sorted(set(path.read_text().splitlines())) if line.strip())
        return
    with tarfile.open(path) as tar:
        for member in tar:
            if member.isfile() and (file := tar.extractfile(member)) is not None:
                yield member.name, file.read()


@functools.cache
def _processor() -> Processor:
    return Processor(FeatureSettings(), MediaLimits())


def measure_set(name: str, modality: str, path: Path, half: int, most: int) -> None:
    signature = SIGNATURES.make(Choice(_KINDS[modality]), scope=modality)
    listed = list(_items(path))
    random = np.random.default_rng(0)
    listed = [listed[n] for n in random.permutation(len(listed))][half::2]
    if most < _MOST:
        listed = listed[:most]
    seconds = {"featurizing_us": 0.0, "signing_us": 0.0}
    names, values, signed = [], [], []
    for item, data in listed:
        try:
            started = time.perf_counter()
            content = _processor().decode(modality, data)
            _processor().modalities[modality].describe(content)
            _processor().featurize(modality, content)
            between = time.perf_counter()
            value = signature.sign(content)
            seconds["signing_us"] += time.perf_counter() - between
            seconds["featurizing_us"] += between - started
        except MediaError:
            continue
        if value is not None:
            names.append(item)
            values.append(value)
            signed.append(data)
    started = time.perf_counter()
    first, second, similarity = alike(signature, values)
    seconds["deciding_us"] = time.perf_counter() - started
    costs = {what: round(1e6 * spent / max(1, len(listed)), 1) for what, spent in seconds.items()}
    best = np.argsort(-similarity)[:10]
    line = {"benchmark": "near_duplicates", "set": name, "contents": len(listed), "signed": len(values)}
    line |= {"pairs": len(first), "in_pairs": len({*first.tolist(), *second.tolist()})} | costs
    line |= {"examples": [(names[first[n]], names[second[n]], round(float(similarity[n]), 3)) for n in best]}
    print(json.dumps(line), flush=True)
    _measure_planted(name, modality, signature, list(zip(values, signed, strict=True))[:most], values)


def _measure_planted(name: str, modality: str, signature: Any, items: list[Any], values: list[bytes]) -> None:
    loose = SIGNATURES.make(Choice(_KINDS[modality], {"least": 0.01}), scope=modality)
    planted: dict[str, list[tuple[int, bytes | None]]] = {}
    random = np.random.default_rng(1)
    for number, (_, data) in enumerate(items):
        opened = _opened(modality, data)
        for way, plant in _WAYS[modality](random).items():
            try:
                value = signature.sign(_processor().decode(modality, plant(opened)))
            except MediaError:
                value = None
            planted.setdefault(way, []).append((number, value))
    for way, copies in planted.items():
        kept = [(number, value) for number, value in copies if value is not None]
        first, second, similarity = alike(loose, [*values, *(value for _, value in kept)])
        told = dict(zip(zip(first.tolist(), second.tolist(), strict=True), similarity.tolist(), strict=True))
        likeness = [told.get((number, len(values) + place), 0) for place, (number, _) in enumerate(kept)]
        likeness += [0] * (len(copies) - len(kept))
        found = sum(one >= signature.options.least for one in likeness)
        line = {"benchmark": "near_duplicates", "set": name, "way": way, "planted": len(copies), "found": found}
        line |= {
            "share": round(found / max(1, len(copies)), 4),
            "least_of_95_%": round(float(np.quantile(likeness, 0.05)), 3),
        }
        print(json.dumps(line), flush=True)


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--half", choices=("first", "second"), default="second")
    parser.add_argument("--sets", nargs="*", default=list(_SETS))
    arguments = parser.parse_args()
    for name in arguments.sets:
        modality, place = _SETS[name]
        if not (arguments.data / place).is_file():
            sys.exit(f"there is no {arguments.data / place}: --data names the folder of real media")
        half = ("first", "second").index(arguments.half)
        measure_set(name, modality, arguments.data / place, half, 6 if arguments.quick else _MOST)


if __name__ == "__main__":
    main()
