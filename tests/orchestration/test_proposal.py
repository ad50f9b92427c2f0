"""What `triptych init` proposes for a folder that holds files."""

import json
import sqlite3
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml
from click.testing import CliRunner

from orchestration.cli import main
from orchestration.inspection import check
from orchestration.project import load
from orchestration.proposal import propose


def written(folder: Path, *options: str) -> dict[str, Any]:
    """The project file that init writes, as YAML; it can be loaded."""
    done = CliRunner().invoke(main, ["init", str(folder), *options])
    assert done.exit_code == 0, done.output
    path = folder / "project.yaml"
    load(path)
    return yaml.safe_load(path.read_text())


def csv(path: Path, *rows: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([*rows, ""]))


def test_folders_and_tables_that_share_keys(tiny: Path) -> None:
    expected = check(load(tiny)).samples
    tiny.unlink()
    found = written(tiny.parent)
    recordings = {"files": "recordings", "table": "recordings.csv", "key": "id", "file": "file"}
    assert found["sources"] == [
        {"name": "photos", "modality": "image", "files": "photos"},
        {"name": "recordings", "modality": "speech", **recordings},
        {"name": "question", "modality": "text", "table": "questions.csv", "column": "question", "key": "id"},
    ]
    assert (found["align"]["label"], found["align"]["group"]) == ("answer", ["speaker"])
    report = check(load(tiny))
    assert report.problem is None and not report.unmatched
    assert sum(report.samples.values()) == sum(expected.values())
    lines = tiny.read_text().splitlines()
    assert any("file names its files" in line for line in lines) and any(
        "2 different answers" in line for line in lines
    )


def test_one_table_over_archives_names_all_of_a_sample(
    tmp_path: Path, make_png: Any, make_wav: Any, home: Path
) -> None:
    made = tmp_path / "made"
    made.mkdir()
    for n in range(40):
        make_png(made / f"{n}.png", n)
        make_wav(made / f"{n}.wav", n)
    data = tmp_path / "data"
    data.mkdir()
    for name, suffix in (("pictures.tar", "png"), ("voices.tar", "wav")):
        with tarfile.open(data / name, "w") as archive:
            for n in range(40):
                archive.add(made / f"{n}.{suffix}", f"all/{suffix}/{n}.{suffix}")
    rows = [f"s{n},png/{n}.png,{n}.wav,{n % 9} of them are here now,{'ab'[n % 2]},{n % 5}" for n in range(40)]
    splits = ["train"] * 20 + ["val"] * 10 + ["test"] * 10
    rows = [f"{row},{split}" for row, split in zip(rows, splits, strict=True)]
    csv(data / "samples.csv", "sample_id,picture,voice,said,kind,rank,part", *rows)
    found = written(tmp_path / "project", "--data", str(data))
    assert found["data"] == str(data)
    table = {"table": "${data}/samples.csv", "key": "sample_id"}
    assert [{n: v for n, v in source.items() if n != "name"} for source in found["sources"]] == [
        {"modality": "image", "files": "${data}/pictures.tar", **table, "file": "picture"},
        {"modality": "speech", "files": "${data}/voices.tar", **table, "file": "voice"},
        {"modality": "text", "table": table["table"], "column": "said", "key": "sample_id"},
    ]
    assert found["align"] == {"label": "kind", "split": {"column": "part"}}
    assert found["model"]["output"] == "class"
    report = check(load(tmp_path / "project" / "project.yaml"))
    assert report.problem is None and report.samples == {"train": 20, "validation": 10, "test": 10}
    assert sorted(path.name for path in data.iterdir()) == ["pictures.tar", "samples.csv", "voices.tar"]


def test_shards_of_samples(tmp_path: Path, make_png: Any, make_wav: Any, home: Path) -> None:
    make_png(tmp_path / "made.png", 1)
    for split in ("train", "test"):
        for part in range(2):
            with tarfile.open(tmp_path / f"{split}-{part}.tar", "w") as archive:
                for n in range(3):
                    number = 6 * (split == "test") + 3 * part + n
                    make_png(tmp_path / "made.png", number)
                    (tmp_path / "made.txt").write_text(f"Picture {number}.")
                    (tmp_path / "made.cls").write_text(str(number % 2))
                    for suffix in ("png", "cls", "txt"):
                        archive.add(tmp_path / f"made.{suffix}", f"{n:04}.{suffix}")
    for path in tmp_path.glob("made.*"):
        path.unlink()
    found = written(tmp_path)
    shared = {"kind": "webdataset", "files": ["test-*.tar", "train-*.tar"], "path": "**/{split}-*"}
    assert {s["modality"]: {n: s[n] for n in s if n not in ("name", "modality")} for s in found["sources"]} == {
        "text": {**shared, "column": "txt"},
        "image": {**shared, "member": ["png"]},
    }
    assert found["align"] == {"label": "cls", "split": {"column": "split"}} and found["model"]["output"] == "class"
    report = check(load(tmp_path / "project.yaml"))
    assert report.problem is None and report.samples == {"train": 6, "test": 6} and not report.refused


def test_a_data_set_that_was_saved(tmp_path: Path, make_png: Any, home: Path) -> None:
    make_png(tmp_path / "made.png", 1)
    features = datasets.Features(
        image=datasets.Image(), said=datasets.Value("string"), kind=datasets.ClassLabel(names=["a", "b"])
    )
    image = {"bytes": (tmp_path / "made.png").read_bytes(), "path": None}
    rows = [{"image": image, "said": f"picture {n}", "kind": n % 2} for n in range(6)]
    parts = {name: datasets.Dataset.from_list(rows, features) for name in ("train", "test")}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "sets" / "pets")
    (tmp_path / "made.png").unlink()
    found = written(tmp_path)
    shared = {"kind": "huggingface", "dataset": "sets/pets"}
    assert found["sources"] == [
        {"name": "said", "modality": "text", **shared, "column": "said"},
        {"name": "image", "modality": "image", **shared, "column": "image"},
    ]
    assert found["align"] == {"label": "kind", "split": {"column": "split"}} and found["model"]["output"] == "class"
    report = check(load(tmp_path / "project.yaml"))
    assert report.samples == {"train": 6, "test": 6} and not report.refused


def test_tables_of_a_database(tmp_path: Path, make_png: Any, home: Path) -> None:
    (tmp_path / "photos").mkdir()
    for n in range(8):
        make_png(tmp_path / "photos" / f"{n}.png", n)
    with sqlite3.connect(tmp_path / "shop.db") as connection:
        connection.execute("CREATE TABLE goods (id INTEGER, photo TEXT, said TEXT, kind TEXT, thumb BLOB)")
        content = (tmp_path / "photos" / "0.png").read_bytes()
        rows = [(n, f"{n}.png", f"this is the article {n}", "ab"[n % 2], content) for n in range(8)]
        connection.executemany("INSERT INTO goods VALUES (?, ?, ?, ?, ?)", rows)
        connection.execute("CREATE TABLE empty (id)")
    (tmp_path / "thumbs.db").write_bytes(b"no database")
    found = written(tmp_path / "project", "--data", str(tmp_path))
    shared = {"kind": "sql", "url": "sqlite:///${data}/shop.db", "query": "SELECT * FROM goods", "key": "id"}
    named = {source.pop("name"): source for source in found["sources"]}
    assert named == {
        "photos": {"modality": "image", "files": "${data}/photos", **shared, "file": "photo"},
        "thumb": {"modality": "image", **shared, "column": "thumb"},
        "said": {"modality": "text", **shared, "column": "said"},
    }
    assert found["align"]["label"] == "kind" and found["model"]["output"] == "class"
    path = tmp_path / "project" / "project.yaml"
    path.write_text(path.read_text().replace("  - {name: thumb", "  # {name: thumb"))  # one picture a sample
    report = check(load(path))
    assert sum(report.samples.values()) == 8 and not report.refused


@pytest.mark.parametrize("beside", [True, False])
def test_recordings_with_subtitles(tmp_path: Path, make_wav: Any, home: Path, beside: bool) -> None:
    (tmp_path / "talks").mkdir()
    subtitles = tmp_path / ("talks" if beside else "subtitles")
    subtitles.mkdir(exist_ok=True)
    for n in range(4):
        make_wav(tmp_path / "talks" / f"t{n}.wav", n)
        cues = "00:00.000 --> 00:00.050\nYes.\n\n00:00.050 --> 00:00.100\nNo.\n"
        (subtitles / f"t{n}.vtt").write_text(f"WEBVTT\n\n{cues}")
    csv(tmp_path / "other" / "film.en.srt", "1", "00:00:01,000 --> 00:00:02,000", "Hello")
    found = written(tmp_path)
    (source,) = found["sources"]
    assert source["files"] == ("talks/*.wav" if beside else "talks")
    table = f"{subtitles.name}/*.vtt"
    assert source["segments"] == {"kind": "times", "table": table, "recording": "file", "key": ["file", "number"]}
    assert found["align"]["label"] == "text" and found["model"]["output"] == "text"
    assert "not used: other/*.srt" in (tmp_path / "project.yaml").read_text()
    report = check(load(tmp_path / "project.yaml"))
    assert sum(report.samples.values()) == 8 and not report.refused


def test_a_table_that_another_is_joined_to_by_a_shared_column(tmp_path: Path, make_png: Any, home: Path) -> None:
    (tmp_path / "scans").mkdir()
    for n in range(6):
        make_png(tmp_path / "scans" / f"{n}.png", n)
    csv(tmp_path / "scans.csv", "file,case_id,ward", *(f"{n}.png,c{n},{'xy'[n % 2]}" for n in range(6)))
    notes = [json.dumps({"case_id": f"c{n}", "note": f"case {n} is well", "ward": "z"}) for n in range(6)]
    csv(tmp_path / "notes.jsonl", *notes)
    found = written(tmp_path)
    assert [source["key"] for source in found["sources"]] == ["case_id", "case_id"]
    assert found["align"]["label"] == "scans.ward"  # both tables have such a column


def test_mixed_folders_and_what_is_not_used(tmp_path: Path, make_png: Any, make_wav: Any, home: Path) -> None:
    for folder in ("a", "b/c"):
        (tmp_path / folder).mkdir(parents=True)
        make_png(tmp_path / folder / "one.png", 1)
        make_png(tmp_path / folder / "two.png", 2)
    for name in ("x.wav", "y.wav"):
        make_wav(tmp_path / "b" / name, 3)
    csv(tmp_path / "README.txt", "read me")
    csv(tmp_path / "orders.txt", "order one")
    csv(tmp_path / "broken.csv", "a,a", "1,2")
    (tmp_path / "notes.tar").write_bytes(b"no archive at all")
    found = written(tmp_path)
    files = {(source["modality"], source["files"]) for source in found["sources"]}
    assert files == {("image", "a"), ("image", "b/c"), ("speech", "b/*.wav")}
    said = [line for line in (tmp_path / "project.yaml").read_text().splitlines() if "# not used: " in line]
    assert len(said) == 3 and all(any(name in line for line in said) for name in ("orders", "broken", "notes.tar"))
    assert str(tmp_path) not in "".join(said)


def test_folders_that_say_split_and_label(tmp_path: Path, make_png: Any, home: Path) -> None:
    for n in range(12):
        folder = tmp_path / "photos" / ("train", "test")[n % 2] / ("red", "blue", "green")[n % 3]
        folder.mkdir(parents=True, exist_ok=True)
        make_png(folder / f"{n}.png", n)
    found = written(tmp_path)
    (source,) = found["sources"]
    assert source == {"name": "photos", "modality": "image", "files": "photos", "path": "{split}/{label}/{name}"}
    assert found["align"] == {"label": "label", "split": {"column": "split"}}
    assert check(load(tmp_path / "project.yaml")).samples == {"train": 6, "test": 6}


def test_a_table_without_texts_is_the_table_of_links(tmp_path: Path, make_png: Any, home: Path) -> None:
    (tmp_path / "photos").mkdir()
    for n in range(8):
        make_png(tmp_path / "photos" / f"p{n}.png", n)
    csv(tmp_path / "labels.csv", "photo,colour", *(f"p{n},{'rb'[n % 2]}" for n in range(8)))
    found = written(tmp_path)
    assert found["sources"] == [{"name": "photos", "modality": "image", "files": "photos"}]
    links = {"table": "labels.csv", "columns": {"photos": "photo"}}
    assert found["align"] == {**links, "label": "colour", "split": {"train": 0.8, "validation": 0.1}}
    assert sum(check(load(tmp_path / "project.yaml")).samples.values()) == 8


def test_shards_and_suffixes_are_one_source(tmp_path: Path, make_png: Any, home: Path) -> None:
    for n in range(4):
        make_png(tmp_path / f"{n}.png", n)
        with tarfile.open(tmp_path / f"part-{n % 2}.tar", "a") as archive:
            archive.add(tmp_path / f"{n}.png", f"{n}.png")
        (tmp_path / f"{n}.png").rename(tmp_path / f"{n}{('.png', '.PNG')[n % 2]}")
    files = [source["files"] for source in written(tmp_path)["sources"]]
    assert files == [["*.PNG", "*.png"], "part-*.tar"]


def test_texts_alone(tmp_path: Path, home: Path) -> None:
    csv(tmp_path / "all.csv", "n,review,sentiment", *(f"{n},it was {n} times good,{'+-'[n % 2]}" for n in range(9)))
    found = written(tmp_path)
    text = {"name": "review", "modality": "text", "table": "all.csv", "column": "review", "key": "n"}
    assert found["sources"] == [text] and found["align"]["label"] == "sentiment"


@pytest.mark.parametrize("make", [lambda folder: None, lambda folder: (folder / "main.py").write_text("pass")])
def test_where_nothing_could_be_a_source_the_template_is_written(
    tmp_path: Path, make: Callable[[Path], object], home: Path
) -> None:
    make(tmp_path)
    assert propose(tmp_path) is None
    assert [source["name"] for source in written(tmp_path)["sources"]] == ["photos", "recordings", "notes"]


def test_a_project_file_that_is_there_stays(tiny: Path) -> None:
    before = tiny.read_text()
    done = CliRunner().invoke(main, ["init", str(tiny.parent)])
    assert done.exit_code != 0 and tiny.read_text() == before
