"""The built-in examples: their data are made once here, then looked at from all sides."""

import csv
import io
import json
import os
import subprocess
import sys
import tarfile
import wave
from collections import Counter, defaultdict
from datetime import datetime
from pathlib import Path

import dagster as dg
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from assets import pipeline
from assets.alignment import align
from assets.settings import AlignSettings, SplitSettings
from assets.splits import split_of
from orchestration.examples import digits, drive
from orchestration.examples.layout import EXAMPLES, lay_out
from orchestration.examples.questions import (
    COLUMNS,
    COUNTS,
    NEEDS,
    UNKNOWN,
    WORDINGS,
    Medium,
    answer,
    generate_questions,
    pair,
    same_digits,
)
from orchestration.project import load
from orchestration.report import write_report
from orchestration.run import open_instance

PROJECTS = Path(digits.__file__).parent
ALIGN = AlignSettings(group=("image", "voice"))
SPEAKERS = AlignSettings(group=("image",), held_out=("speaker",), test_values={"speaker": ("ada",)})


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("example") / "data"
    digits.generate(folder)
    return folder


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def members(path: Path) -> dict[str, bytes]:
    found = {}
    with tarfile.open(path) as archive:
        for member in archive:
            file = archive.extractfile(member)
            assert file is not None
            found[member.name] = file.read()
    return found


def settled(data: Path) -> list[dict[str, str]]:
    """The questions, each with its split, voice, and the digits seen and heard, as the aligned samples have them."""
    align = load(PROJECTS / "digits.yaml").align
    seen = {row["file"]: row["digit"] for row in table(data / "handwriting.csv")}
    heard = {row["file"]: row for row in table(data / "recordings.csv")}
    rows = table(data / "questions.csv")
    for row in rows:
        take = heard[row["speech"]] if row["speech"] else {}
        row |= {"voice": take.get("voice", ""), "heard": take.get("digit", ""), "seen": seen.get(row["image"], "")}
        row["split"] = split_of({**row, "sample_id": row["id"]}, align)
    return rows


@pytest.mark.parametrize("name", EXAMPLES)
def test_project_files_of_the_examples_are_valid(name):
    project = load(PROJECTS / f"{name}.yaml", ["data=somewhere"])
    assert project.name == name
    assert project.modalities == (("image", "speech") if name == "mirror" else ("text", "image", "speech"))
    assert (PROJECTS / f"{name}.yaml").read_text().startswith("#"), "explained to a newcomer"


def test_the_mirror_pairs_what_is_of_one_digit_and_of_one_split(data):
    align = load(PROJECTS / "mirror.yaml").align
    tables = data / "handwriting.csv", data / "recordings.csv"
    rows = same_digits(*tables, align, {"train": 300, "test": 60})
    assert rows == same_digits(*tables, align, {"train": 300, "test": 60})
    voices = {row["file"]: row["voice"] for row in table(tables[1])}
    counts = Counter()
    for row in rows:
        assert row["image"][0] == row["speech"][0] == row["digit"]
        both = split_of({"image": row["image"], "voice": voices[row["speech"]], "sample_id": row["id"]}, align)
        counts[both] += 1
        assert {split_of({"image": row["image"]}, align), split_of({"voice": voices[row["speech"]]}, align)} == {both}
    assert counts == {"train": 300, "test": 60}


def test_scans_are_scikit_learns(data):
    rows, files = table(data / "handwriting.csv"), members(data / "handwriting.tar")
    assert len(rows) == 1797 and [row["file"] for row in rows] == list(files)
    assert len(set(files.values())) == 1797, "equal scans would leak between the splits"
    image = Image.open(io.BytesIO(files["0/0000.png"]))
    assert (image.mode, image.size) == ("L", (28, 28))
    pixels = np.asarray(image)
    assert pixels[12:16, 13:15].max() < 60 and pixels[12:16].max() > 180, "a ring: dark inside, bright around"


def test_every_take_is_speech(data):
    rows, files = table(data / "recordings.csv"), members(data / "recordings.tar")
    assert len(rows) == 1800 and [row["file"] for row in rows] == list(files)
    assert len(set(files.values())) == 1800, "equal takes would leak between the splits"
    assert len({row["voice"] for row in rows}) == 60
    assert set(Counter((row["voice"], row["digit"]) for row in rows).values()) == {3}
    for name, data_ in files.items():
        with wave.open(io.BytesIO(data_)) as file:
            assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (22050, 1, 2)
            samples = np.frombuffer(file.readframes(file.getnframes()), np.int16).astype(float)
        assert 0.2 < len(samples) / 22050 < 1.5, name
        assert np.sqrt(np.mean(samples**2)) > 300, f"{name} is silent"
        assert np.mean(np.abs(samples) >= 32767) < 0.02, f"{name} is clipped"


def test_second_call_does_nothing_and_a_killed_one_is_made_good(data):
    before = {path.name: path.stat().st_mtime_ns for path in data.iterdir()}
    digits.generate(data)
    assert {path.name: path.stat().st_mtime_ns for path in data.iterdir()} == before

    wanted = {name: (data / name).read_bytes() for name in digits.FILES}
    (data / "VERSION").write_text("incomplete")
    (data / "recordings.tar").write_bytes(wanted["recordings.tar"][:1000])
    (data / "questions.csv").unlink()
    digits.generate(data)
    again = {name: (data / name).read_bytes() for name in digits.FILES}
    assert [name for name in digits.FILES if again[name] != wanted[name]] == []


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.txt").write_text("precious")
    with pytest.raises(ValueError, match=r"not empty \(it holds mine.txt\)"):
        digits.generate(tmp_path / "data")
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["mine.txt"]


def test_no_sample_is_excluded_and_no_voice_or_scan_leaks(data):
    rows = settled(data)
    assert Counter(row["split"] for row in rows) == COUNTS
    for column, fewest in (("voice", 3), ("image", 100), ("speech", 90)):
        of_split = defaultdict(set)
        for row in rows:
            if row[column]:
                of_split[row["split"]].add(row[column])
        assert not of_split["train"] & of_split["test"]
        assert not of_split["train"] & of_split["validation"]
        assert not of_split["validation"] & of_split["test"]
        assert all(len(values) >= fewest for values in of_split.values()), column


def test_one_modality_alone_does_not_answer(data):
    """The best that a predictor with perfect eyes or ears, and all of the training answers, can do on test."""
    rows = settled(data)

    def best(*known: str) -> float:
        answers: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
        for row in rows:
            if row["split"] == "train":
                answers[tuple(row[name] for name in known)][row["answer"]] += 1
        test = [row for row in rows if row["split"] == "test"]
        guesses = {key: counted.most_common(1)[0][0] for key, counted in answers.items()}
        return sum(guesses.get(tuple(row[name] for name in known)) == row["answer"] for row in test) / len(test)

    assert best("question") < 0.2
    assert best("kind", "seen") < 0.5 and best("kind", "heard") < 0.5
    assert best("seen", "heard") < 0.6
    assert best("kind", "seen", "heard") == 1


def test_answers_follow_from_what_is_given(data):
    rows = settled(data)
    for row in rows:
        seen, heard = (int(row[name]) if row[name] else None for name in ("seen", "heard"))
        assert row["answer"] == answer(row["kind"], seen, heard)
        assert row["question"] in WORDINGS[row["kind"]]
        assert row["image"] or row["speech"]
    assert set(Counter(row["question"] for row in rows)) == {text for texts in WORDINGS.values() for text in texts}
    missing = Counter((not row["image"], not row["speech"]) for row in rows)
    assert 0.06 < missing[True, False] / len(rows) < 0.08
    assert 0.06 < missing[False, True] / len(rows) < 0.08
    same = Counter(row["answer"] for row in rows if row["kind"] == "same")
    assert 0.8 < same["yes"] / same["no"] < 1.3


def test_answer_of_each_kind():
    assert [answer(kind, 7, 9) for kind in WORDINGS] == ["16", "2", "9", "no", "7", "9"]
    assert answer("same", 4, 4) == "yes" and answer("difference", 9, 7) == "2"
    for kind, needs in NEEDS.items():
        assert (answer(kind, None, 3) == UNKNOWN) == ("image" in needs)
        assert (answer(kind, 3, None) == UNKNOWN) == ("speech" in needs)
        assert len(set(WORDINGS[kind])) >= 4
    with pytest.raises(ValueError, match="'product', expected one of sum"):
        answer("product", 1, 2)


def media(modality: str, column: str, values: list[str], count: int) -> list[Medium]:
    """`count` files of each value, all digits among them; images are their own column."""
    return [
        Medium(file, number % 10, {column: file if column == modality else value})
        for value in values
        for number in range(count)
        for file in [f"{value}_{number}"]
    ]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), hashed=st.integers(0, 1000), train=st.floats(0.4, 0.7))
def test_pairs_never_cross_a_split(seed, hashed, train):
    align = AlignSettings(group=("image", "voice"), split=SplitSettings(train=train, validation=0.2, seed=hashed))
    images = media("image", "image", ["scan"], 200)
    recordings = media("speech", "voice", [f"v{number}" for number in range(60)], 2)
    voice = {medium.file: medium.columns["voice"] for medium in recordings}
    rows = pair(images, recordings, align, {"train": 20, "validation": 10, "test": 10}, seed)
    found = [
        split_of({"image": row["image"], "voice": voice.get(row["speech"], ""), "sample_id": row["id"]}, align)
        for row in rows
    ]
    assert Counter(found) == {"train": 20, "validation": 10, "test": 10}
    assert len({row["id"] for row in rows}) == 40
    assert rows == pair(images, recordings, align, {"train": 20, "validation": 10, "test": 10}, seed)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_held_out_speaker_is_in_test_only_and_recordings_are_in_one_split(seed):
    images = media("image", "image", ["scan"], 200)
    recordings = media("speech", "speaker", ["ada", "ben", "eve"], 60)
    speaker = {medium.file: medium.columns["speaker"] for medium in recordings}
    rows = pair(images, recordings, SPEAKERS, {"train": 60, "validation": 20, "test": 20}, seed)
    of_file = defaultdict(set)
    for row in rows:
        who = speaker.get(row["speech"], "")
        split = split_of({"image": row["image"], "speaker": who, "sample_id": row["id"]}, SPEAKERS)
        assert split != "excluded" and (not who or (split == "test") == (who == "ada"))
        of_file[row["image"]].add(split)
        of_file[row["speech"]].add(split)
    del of_file[""]
    assert all(len(splits) == 1 for splits in of_file.values())


@pytest.fixture
def tables(tmp_path) -> tuple[Path, Path, Path]:
    images = "".join(f"{number}.png,{number % 10}\n" for number in range(200))
    sounds = "".join(f"{who}{number}.wav,{number % 10},{who}\n" for who in ("ada", "ben") for number in range(50))
    (tmp_path / "handwriting.csv").write_text("file,label\n" + images)
    (tmp_path / "recordings.csv").write_text("file,digit,speaker\n" + sounds)
    return tmp_path / "handwriting.csv", tmp_path / "recordings.csv", tmp_path / "questions.csv"


def test_questions_of_ones_own_tables(tables):
    counts = {"train": 100, "validation": 20, "test": 30}
    generate_questions(*tables, SPEAKERS, counts)
    rows = table(tables[2])
    assert len(rows) == 150 and tuple(rows[0]) == COLUMNS
    assert sum(row["speech"].startswith("ada") for row in rows) in range(20, 31)
    before = tables[2].stat().st_mtime_ns
    generate_questions(*tables, SPEAKERS, counts)
    assert tables[2].stat().st_mtime_ns == before
    generate_questions(*tables, SPEAKERS, counts, seed=1)
    assert table(tables[2]) != rows


def test_an_edited_project_file_stays_and_an_untouched_one_takes_new_data(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "orchestration.examples.questions.generate_questions", lambda *tables: asked.append(tables[0].parent)
    )
    target = lay_out("spoken_digits", tmp_path, "/first")
    assert (lay_out("spoken_digits", tmp_path, "/second"), load(target).data) == (target, "/second")
    written = target.read_text()
    for edited in (written.replace("epochs: ", "epochs: 1"), f"{written}watch: true\n"):
        target.write_text(edited)
        lay_out("spoken_digits", tmp_path, "/third")
        assert target.read_text() == edited
    lay_out("spoken_digits", tmp_path)
    assert asked == [Path("/first"), Path("/second"), Path("/third"), Path("/third"), Path("/second")]


def test_what_is_wrong_with_ones_own_tables_is_named(tables):
    counts = {"train": 10, "test": 10}
    stranger = AlignSettings(group=("image",), held_out=("speaker",), test_values={"speaker": ("zoe",)})
    with pytest.raises(ValueError, match=r"no file has 'zoe'; the tables say ada, ben"):
        generate_questions(*tables, stranger, counts)
    everyone = AlignSettings(group=("image",), held_out=("speaker",), test_values={"speaker": ("ada", "ben")})
    with pytest.raises(ValueError, match=r"no speech file falls into the split train \(there are: test 100\)"):
        generate_questions(*tables, everyone, counts)
    tables[1].write_text("file,digit,speaker\na.wav,7,ada\nb.wav,ten,ben\n")
    with pytest.raises(ValueError, match=r"recordings.csv line 3: expected a file and, in column digit"):
        generate_questions(*tables, SPEAKERS, counts)
    assert not tables[2].exists()


# drive


@pytest.fixture(scope="module")
def driven(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("drive")
    lay_out("drive", folder)
    return folder


def test_streams_of_a_drive_have_the_clocks_that_are_planted(driven):
    """By the clocks of the example each source stamps the same moments, to some milliseconds."""
    rows = {name: table(driven / "data" / f"{name}.csv") for name in ("camera", "microphone", "log")}
    seconds = {
        name: np.array([(datetime.fromisoformat(row["time"]) - drive.START).total_seconds() for row in listed])
        for name, listed in rows.items()
    }
    camera = np.sort(seconds["camera"])
    for name, (offset, drift) in drive.CLOCKS.items():
        mended = seconds[name] * (1 + drift) + offset
        nearest = np.abs(camera[np.clip(np.searchsorted(camera, mended), 1, len(camera) - 1)] - mended)
        before = np.abs(camera[np.clip(np.searchsorted(camera, mended) - 1, 0, None)] - mended)
        assert np.minimum(nearest, before).max() < 0.02
        assert 0.85 < len(mended) / len(camera) < 0.97
    assert set(Counter(row["action"] for row in rows["camera"])) == {"go", "stop", "wait", "give way"}


def test_the_clocks_of_a_drive_are_found(driven, tmp_path, monkeypatch):
    monkeypatch.setenv("TRIPTYCH_HOME", str(tmp_path))
    project = load(driven / "project.yaml")
    scans = pipeline.scan_sources(pipeline.open_lake(project), project)
    manifest = pa.concat_tables(scan.rows for scan in scans)
    contents = {m: manifest.filter(pc.equal(manifest["modality"], m))["sha256"] for m in project.modalities}
    clean = {m: pa.table({"id": ids}) for m, ids in contents.items()}
    found = align(manifest, clean, project.align, project.sources, project.root, {})
    assert found.samples.num_rows == 2400 and set(found.samples["split"].to_pylist()) == {"train", "validation", "test"}
    assert all(found.samples[f"{m}_id"].null_count < 0.12 * 2400 for m in ("text", "speech"))
    for clock in (json.loads(value) for name, value in found.report if name == "clock"):
        offset, drift = drive.CLOCKS[clock["source"]]
        since = (datetime.fromisoformat(clock["origin"]) - drive.START).total_seconds()
        assert abs(clock["offset"] - (offset + drift * since)) < 0.01
        assert abs(clock["drift_ppm"] - drift * 1e6) < 1


@pytest.mark.slow
def test_a_run_of_drive_shows_what_was_matched_in_time(home):
    command = [sys.executable, "-m", "orchestration.cli", "run", "drive", "--select", "+dataset"]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": os.getcwd()}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "to the times of source microphone" in done.stderr + done.stdout
    with open_instance(home) as instance:
        event = instance.get_latest_materialization_event(dg.AssetKey(["drive", "samples"]))
    told = event.asset_materialization.metadata
    assert "| microphone | 2219 |" in told["streams"].value and len(told["clocks"].value) == 2
    assert told["time_differences"].value.startswith("![picture](data:image/png;base64,")
    project = load(home / "examples" / "drive" / "project.yaml")
    page = write_report(project, home / "report.html").read_text()
    assert "<h2>In time</h2>" in page and "2,219 of 2,400" in page
