"""The project files of docs/layouts.md, each run on a small copy of its layout."""

import json
import re
import sqlite3
import tarfile
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import yaml

from assets import featurizing, pipeline
from orchestration.inspection import check
from orchestration.project import load

DOCUMENT = Path(__file__).parent.parent / "docs" / "layouts.md"
PROJECTS = {
    yaml.safe_load(text)["name"]: text for text in re.findall(r"```yaml\n(.*?)```", DOCUMENT.read_text("utf-8"), re.S)
}
SMALL = "features: {image: {size: 8}}\n"


@pytest.fixture
def png(make_png, tmp_path) -> Callable[[int], bytes]:
    """A picture, another for each number."""

    def make(number: int) -> bytes:
        make_png(tmp_path / "made.png", number)
        return (tmp_path / "made.png").read_bytes()

    return make


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write(path: Path, content: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def sound(number: int, form: str) -> bytes:
    """A tenth of a second of a tone, another for each number."""
    stream, times = BytesIO(), np.arange(1600) / 16000
    soundfile.write(stream, 0.5 * np.sin(2 * np.pi * (200 + 20 * number) * times), 16000, format=form)
    return stream.getvalue()


def class_folders(root: Path, png: Callable[[int], bytes]) -> dict[str, str]:
    names = ["train/cat/1", "train/dog/2", "val/cat/3", "test/dog/4"]
    for n, name in enumerate(names):
        write(root / f"photos/{name}.png", png(n))
    return {name: name.split("/")[1] for name in names}


def folder_with_table(root: Path, png: Callable[[int], bytes]) -> dict[str, str]:
    rows = [f"{n}.png,{'ill' if n % 2 else 'well'},p{n}" for n in range(24)]
    for n in range(24):
        write(root / f"data/scans/{n}.png", png(n))
    write(root / "data/metadata.csv", "\n".join(["file_name,label,patient", *rows]))
    return {f"{n}.png": "ill" if n % 2 else "well" for n in range(24)}


def ljspeech(root: Path, png: Callable[[int], bytes]) -> dict[str, str]:
    said = {f"LJ001-{n:04}": f'Said "once, {n}' if n % 2 else f"{n}, said twice" for n in range(24)}
    for n, name in enumerate(said):
        write(root / f"LJSpeech-1.1/wavs/{name}.wav", sound(n, "WAV"))
    rows = [f"{name}|{text}|{text}" for name, text in said.items()]
    write(root / "LJSpeech-1.1/metadata.csv", "\n".join(rows))
    return said


def librispeech(root: Path, png: Callable[[int], bytes]) -> dict[str, str]:
    said = {f"{n // 2}-7-{n % 2:04}": f"UTTERANCE  NUMBER {n}" for n in range(48)}
    for n, (name, text) in enumerate(said.items()):
        folder = root / f"LibriSpeech/dev-clean/{n // 2}/7"
        write(folder / f"{name}.flac", sound(n, "FLAC"))
        with (folder / f"{n // 2}-7.trans.txt").open("a") as table:
            table.write(f"{name} {text}\n")
    return said


def kaldi(root: Path, png: Callable[[int], bytes]) -> dict[str, str]:
    said = {f"utt{n}": f"WORD {n}" for n in range(48)}
    for n, name in enumerate(said):
        write(root / f"audio/{name}.wav", sound(n, "WAV"))
    write(root / "data/train/wav.scp", "".join(f"{name} audio/{name}.wav\n" for name in said))
    rows = [f"{name} speaker{n // 2}\t{text}\n" for n, (name, text) in enumerate(said.items())]
    write(root / "data/train/linked", "".join(rows))
    return said


def long_recordings(root: Path, png: Callable[[int], bytes]) -> dict[str, str]:
    turns = {f"t{n}": ("monday" if n < 2 else f"day{n // 2}", "calm" if n % 3 else "angry") for n in range(48)}
    rows = [
        f"{turn},{call},0:00:00.0{2 * (n % 2)},0.0{4 * (n % 2) + 3},anna,{mood}"
        for n, (turn, (call, mood)) in enumerate(turns.items())
    ]
    for n, call in enumerate(dict.fromkeys(call for call, _ in turns.values())):
        write(root / f"calls/{call}.flac", sound(n, "FLAC"))
    write(root / "turns.csv", "\n".join(["turn,call,from,to,speaker,mood", *rows]))
    write(root / "said.csv", "\n".join(["turn,words", *(f"{turn},Words of {turn}" for turn in turns)]))
    return {turn: mood for turn, (_, mood) in turns.items()}


def subtitles(root: Path, png: Callable[[int], bytes]) -> dict[str, str]:
    speakers = {f"t{n}/{cue}": "anna" if (n + cue) % 2 else "bo" for n in range(24) for cue in (1, 2)}
    for n in range(24):
        write(root / f"talks/t{n}.wav", sound(n, "WAV"))
        cues = [
            f"00:00.0{4 * cue - 4} --> 00:00.0{4 * cue}\n<v {speakers[f't{n}/{cue}']}>Cue {cue} of {n}"
            for cue in (1, 2)
        ]
        write(root / f"subtitles/t{n}.vtt", "\n\n".join(["WEBVTT", *cues]))
    return speakers


def annotations(root: Path, png: Callable[[int], bytes]) -> dict[str, str]:
    rows = [{"file": f"{n}.png", "class": "cat" if n % 2 else "dog"} for n in range(24)]
    for n in range(24):
        write(root / f"photos/{n}.png", png(n))
    document = {"version": 2, "images": [{"id": n, "width": 20} for n in range(24)], "annotations": rows}
    write(root / "labels.json", json.dumps(document))
    return {row["file"]: row["class"] for row in rows}


def objects(root: Path, png: Callable[[int], bytes]) -> dict[str, str]:
    images, boxes = [], []
    for n in range(24):
        write(root / f"photos/{n}.png", png(n))
        images.append({"id": n, "file_name": f"{n}.png"})
        for half in range(2):
            box = {"id": 100 + 2 * n + half, "image_id": n, "bbox": [10 * half, 2, 9.5, 8], "category_id": n % 3}
            boxes.append(box | {"segmentation": [[0.5, 0.5, 9, 0.5, 9, 9]]})
    write(root / "instances.json", json.dumps({"images": images, "annotations": boxes}))
    return {str(box["id"]): str(box["category_id"]) for box in boxes}


def hub_parquet(root: Path, png: Callable[[int], bytes]) -> dict[str, str]:
    (root / "data").mkdir(parents=True)
    for part in range(2):
        numbers = range(12 * part, 12 * part + 12)
        columns = {"id": [f"p{n}" for n in numbers], "label": [f"c{n % 3}" for n in numbers]}
        pictures = [{"bytes": png(n), "path": f"{n}.png"} for n in numbers]
        pq.write_table(pa.table(columns | {"image": pictures}), root / f"data/train-0000{part}-of-00002.parquet")
    return {f"p{n}": f"c{n % 3}" for n in range(24)}


def huggingface(root: Path, png: Callable[[int], bytes]) -> dict[str, str]:
    names = {
        f"{split}/{2 * (n % 2) + n // 2}": f"{split}/{('cat', 'dog')[n % 2]}/{n}"
        for split in ("train", "test")
        for n in range(4)
    }
    for n, name in enumerate(names.values()):
        write(root / f"pets/{name}.png", png(n))
    return {key: name.split("/")[1] for key, name in names.items()}


def sql(root: Path, png: Callable[[int], bytes]) -> dict[str, str]:
    rows = [(n, f"{n}.png", f"Good {n}.", f"kind {n % 3}") for n in range(24)]
    for n, name, _, _ in rows:
        write(root / "photos" / name, png(n))
    with sqlite3.connect(root / "shop.db") as connection:
        connection.execute("CREATE TABLE goods (id INTEGER, photo TEXT, said TEXT, kind TEXT)")
        connection.executemany("INSERT INTO goods VALUES (?, ?, ?, ?)", rows)
    return {str(n): kind for n, _, _, kind in rows}


def common_voice(root: Path, png: Callable[[int], bytes]) -> dict[str, str]:
    rows = [f"client{n // 2}\tcommon_voice_de_{n}.mp3\tSatz {n}." for n in range(24)]
    write(root / "cv/validated.tsv", "\n".join(["client_id\tpath\tsentence", *rows]))
    for n in range(24):
        write(root / f"cv/clips/common_voice_de_{n}.mp3", sound(n, "MP3"))
    return {f"common_voice_de_{n}.mp3": f"Satz {n}." for n in range(24)}


def shards(root: Path, png: Callable[[int], bytes]) -> dict[str, str]:
    for shard in range(2):
        stream = BytesIO()
        with tarfile.open(fileobj=stream, mode="w") as archive:
            for n in range(12 * shard, 12 * shard + 12):
                for suffix, content in (("jpg", png(n)), ("txt", f"Picture {n}.".encode())):
                    info = tarfile.TarInfo(f"{n:04}.{suffix}")
                    info.size = len(content)
                    archive.addfile(info, BytesIO(content))
        write(root / f"shards/train-00{shard}.tar", stream.getvalue())
    write(root / "answers.csv", "\n".join(["key,answer", *(f"{n:04},{n % 3}" for n in range(24))]))
    return {f"{n:04}": str(n % 3) for n in range(24)}


def webdataset(root: Path, png: Callable[[int], bytes]) -> dict[str, str]:
    labels = {}
    for shard in ("train-000", "train-001", "val-000", "test-000"):
        (root / "shards").mkdir(parents=True, exist_ok=True)
        with tarfile.open(root / f"shards/{shard}.tar", "w") as archive:
            for n in range(4):
                number = len(labels)
                parts = {"cls": b"%d\n" % (n % 2), "wav": sound(number, "WAV"), "json": b'{"place": "here"}'}
                parts |= {"jpg": png(number), "txt": f"Picture {number}.".encode()}
                labels[f"{shard}/{n:04}"] = str(n % 2)
                for suffix, content in parts.items():
                    info = tarfile.TarInfo(f"{n:04}.{suffix}")
                    info.size = len(content)
                    archive.addfile(info, BytesIO(content))
    return labels


def visits(root: Path, png: Callable[[int], bytes]) -> dict[str, str]:
    keys = [(f"p{n // 2}", f"v{n % 2}") for n in range(48)]
    for n, (patient, visit) in enumerate(keys):
        write(root / f"scans/{patient}/{visit}.png", png(n))
    rows = [f"{patient},{visit},Note {n}.,f{n % 2}" for n, (patient, visit) in enumerate(keys)]
    write(root / "notes.csv", "\n".join(["patient,visit,note,finding", *rows]))
    return {f"{patient}/{visit}": f"f{n % 2}" for n, (patient, visit) in enumerate(keys)}


def several_pictures(root: Path, png: Callable[[int], bytes]) -> dict[str, str]:
    for n in range(60):
        write(root / f"photos/f{n // 3}_{n % 3}.png", png(n))
    rows = [f"f{n},Flat {n}.,{'high' if n % 2 else 'low'}" for n in range(20)]
    write(root / "flats.csv", "\n".join(["flat,description,price_class", *rows]))
    return {f"f{n}": "high" if n % 2 else "low" for n in range(20)}


def views(root: Path, png: Callable[[int], bytes]) -> dict[str, str]:
    rows = []
    for n in range(20):
        names = [f"{n}_{view}.png" if (n + place) % 3 else "" for place, view in enumerate(("f", "l", "r"))]
        for place, name in enumerate(names):
            if name:
                write(root / "frames" / name, png(3 * n + place))
        rows.append(",".join([f"m{n}", *names, "stop" if n % 2 else "go"]))
    write(root / "frames.csv", "\n".join(["moment,front,left,right,action", *rows]))
    return {f"m{n}": "stop" if n % 2 else "go" for n in range(20)}


def links(root: Path, png: Callable[[int], bytes]) -> dict[str, str]:
    (root / "photos").mkdir(parents=True)
    for n in range(24):
        write(root / f"blobs/{n}", png(n))
        (root / f"photos/{'cat' if n % 2 else 'dog'}_{n}.png").symlink_to(f"../blobs/{n}")
    return {f"{'cat' if n % 2 else 'dog'}_{n}": "cat" if n % 2 else "dog" for n in range(24)}


def windows_zip(root: Path, png: Callable[[int], bytes]) -> dict[str, str]:
    stream, names = BytesIO(), [f"{'猫' if n % 2 else '狗'}\\{n}.png" for n in range(24)]
    with zipfile.ZipFile(stream, "w") as archive:
        for n, name in enumerate(names):
            archive.writestr(name.replace("猫", "!!").replace("狗", "??"), png(n))
    content = stream.getvalue().replace(b"!!\\", "猫\\".encode("gbk")).replace(b"??\\", "狗\\".encode("gbk"))
    write(root / "photos.zip", content)
    return {name.replace("\\", "/").removesuffix(".png"): name[0] for name in names}


def streams(root: Path, png: Callable[[int], bytes]) -> dict[str, str]:
    lines, found = ["drive,when,line,action"], {}
    for n in range(30):
        drive, at = f"d{n // 2}", datetime(2024, 5, 1, 12, tzinfo=UTC) + timedelta(seconds=n)
        stamp = round(at.timestamp()) * 10**6
        write(root / f"front/{drive}_{stamp}.png", png(n))
        write(root / f"inside/{drive}_{stamp + 12_000}.wav", sound(n, "WAV"))
        action = "stop" if n % 2 else "go"
        lines.append(f"{drive},2024-05-01 14:00:{n:02d}.020,speed {n},{action}")
        found[f"{drive}_{stamp}@{at:%Y-%m-%dT%H:%M:%S.%fZ}"] = action
    write(root / "log.csv", "\n".join(lines))
    return found


def vectors(root: Path, png: Callable[[int], bytes]) -> dict[str, str]:
    random = np.random.default_rng(0)
    widths = {"words": 6, "faces": 3, "voices": 4}
    clips = {f"c{n}": "glad" if n % 2 else "sad" for n in range(24)}
    rows = [
        {"clip": clip, "mood": mood, "split": ("train", "valid", "test")[n % 3]}
        | {name: random.normal(size=(n % 5 + 1, width)).tolist() for name, width in widths.items()}
        for n, (clip, mood) in enumerate(clips.items())
    ]
    root.mkdir()
    pq.write_table(pa.Table.from_pylist(rows), root / "clips.parquet")
    return clips


LAYOUTS = {
    make.__name__: make
    for make in (
        class_folders,
        folder_with_table,
        ljspeech,
        common_voice,
        librispeech,
        kaldi,
        long_recordings,
        subtitles,
        annotations,
        objects,
        hub_parquet,
        huggingface,
        sql,
        shards,
        webdataset,
        visits,
        several_pictures,
        views,
        links,
        streams,
        vectors,
        windows_zip,
    )
}


def test_every_project_of_the_document_is_tried():
    assert set(PROJECTS) == set(LAYOUTS)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if n % 4 else name for n, name in enumerate(PROJECTS)]
)
def test_a_layout_is_read_as_the_document_says(name, tmp_path, home, png):
    root = tmp_path / "project"
    expected = LAYOUTS[name](root, png)
    own = PROJECTS[name]
    (root / "project.yaml").write_text(own if "features:" in own else own + SMALL, "utf-8")
    project = load(root / "project.yaml")
    report = check(project)
    assert report.problem is None and not report.refused and not report.unreadable and not report.unmatched
    lake = pipeline.open_lake(project)
    pipeline.write_manifest(lake, project)
    for modality in project.modalities:
        assert featurizing.process_modality(lake, project, modality)["quarantined"] == 0
    pipeline.write_samples(lake, project)
    samples = lake.sql("SELECT * FROM samples").to_pylist()
    assert all(row[f"{modality}_status"] == "present" for row in samples for modality in project.modalities)
    assert sorted(row["label"] for row in samples) == sorted(expected.values())
    if project.align.table is None:
        assert {row["sample_id"]: row["label"] for row in samples} == expected
