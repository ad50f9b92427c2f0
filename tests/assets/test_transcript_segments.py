"""Recordings cut by their transcripts: from the project file to segments with text, each once, and none lost."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from assets import featurizing, pipeline
from assets.asset_checks import check_balance
from assets.catalog import SEGMENTS
from assets.segments.base import cut_name, found_by, numbered
from assets.segments.transcript import TranscriptSegments
from assets.source_settings import SourceSettings
from assets.sources.base import Entry
from orchestration.probe import decode_some
from orchestration.project import load
from tests.training import tiny_ctc
from training import forced_alignment
from training.family import Choice
from training.forced_alignment import words_of

RATE = 16_000
PROJECT = """
name: read
sources:
  - name: readings
    modality: speech
    files: readings
    table: said.csv
    key: file
    segments: {kind: transcript, model: ctc, text: said}
align: {label: text, split: {column: split}}
features: {speech: {mels: 20}}
model: {output: text}
"""
SAID = {"a": "One, two. Three! — Four five", "b": "six seven", "c": "42!", "d": "nine " * 90, "e": "", "f": "eight"}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return tiny_ctc.save("wav2vec2", tmp_path_factory.mktemp("model") / "ctc")


@pytest.fixture
def project(tmp_path: Path, home: Path, model: Path) -> Path:
    (tmp_path / "readings").mkdir()
    (tmp_path / "ctc").symlink_to(model)
    for number, name in enumerate(SAID):
        noise = np.random.default_rng(number).standard_normal(2 * RATE).astype(np.float32) / 10
        soundfile.write(tmp_path / "readings" / f"{name}.wav", noise, RATE)
    write_said(tmp_path, SAID)
    (tmp_path / "project.yaml").write_text(PROJECT)
    return tmp_path / "project.yaml"


def write_said(folder: Path, said: dict[str, str]) -> None:
    with (folder / "said.csv").open("w", newline="") as file:
        splits = {"b": "test", "f": "validation"}
        rows = [(f"{name}.wav", text, splits.get(name, "train")) for name, text in said.items()]
        csv.writer(file).writerows([("file", "said", "split"), *rows])


def data_side(path: Path) -> tuple[pipeline.Lake, dict[str, int]]:
    project = load(path)
    lake = pipeline.open_lake(project)
    pipeline.write_manifest(lake, project)
    counts = featurizing.process_modality(lake, project, "speech")
    pipeline.write_samples(lake, project)
    assert check_balance(lake, project).passed
    return lake, counts


@pytest.mark.slow
def test_recordings_become_the_sentences_of_their_transcripts(project: Path, monkeypatch: Any) -> None:
    aligned: list[str] = []
    align = forced_alignment.Aligner.align

    def counted(self: Any, waveform: Any, rate: int, transcript: str) -> Any:
        aligned.append(transcript[:9])
        return align(self, waveform, rate, transcript)

    monkeypatch.setattr(forced_alignment.Aligner, "align", counted)
    lake, counts = data_side(project)
    assert counts.pop("computed") == dict.fromkeys(["clean_speech", "signatures.speech", "speech_features"], 7)
    assert counts == {"seen": 7, "processed": 7, "reused": 0, "quarantined": 2}
    assert sorted(aligned) == ["42!", "One, two.", "eight", "nine nine", "six seven"], "each recording once"
    rows = lake.sql(
        "SELECT c.id, key, attributes->>'text' AS said, start, seconds FROM manifest m "
        "JOIN clean_speech c ON parent_id = sha256 AND m.cut = c.cut ORDER BY key"
    ).to_pylist()
    assert [(row["key"], row["said"]) for row in rows] == [
        ("a.wav/1", "One, two."),
        ("a.wav/2", "Three!"),
        ("a.wav/3", "— Four five"),
        ("b.wav/1", "six seven"),
        ("f.wav/1", "eight"),
    ]
    times = [time for row in rows[:3] for time in (row["start"], row["start"] + row["seconds"])]
    assert times == sorted(times) and times[0] >= 0 and times[-1] <= 2
    assert {row["label"] for row in lake.sql("SELECT label FROM samples").to_pylist()} == {row["said"] for row in rows}
    refused = lake.sql("SELECT stage, reason, message FROM quarantine ORDER BY uri").to_pylist()
    assert [(row["stage"], row["reason"]) for row in refused] == [
        ("clean", "not_aligned"),
        ("clean", "not_aligned"),
        ("manifest", "absent"),
    ]
    assert "c.wav" in refused[0]["message"] and "no character that the model knows" in refused[0]["message"]
    assert re.search("d.wav.*needs 449 frames of the model and the recording has 98", refused[1]["message"])
    assert "column 'said' has no transcript of it" in refused[2]["message"]

    aligned.clear()
    again = {"seen": 7, "processed": 0, "reused": 7, "quarantined": 2, "computed": {}}
    assert data_side(project)[1] == again and aligned == []
    write_said(project.parent, SAID | {"b": "six. seven"})
    changed = data_side(project)[1]
    assert changed.pop("computed") and changed == {"seen": 8, "processed": 2, "reused": 6, "quarantined": 2}
    assert aligned == ["six. seve"]

    lake.open("speech_features").delete(f"id = '{rows[1]['id']}'")  # one of three: found by the words of all
    assert data_side(project)[1]["processed"] == 1 and aligned == ["six. seve", "One, two."]
    assert lake.sql("SELECT count(DISTINCT id) AS n FROM speech_features")["n"].to_pylist() == [7]
    (tried,) = decode_some(load(project), lake.read("manifest"), 8)[0].values()
    assert [(found.items, found.decoded, found.unreadable) for found in tried.values()] == [(8, 8, 2)], "as a run"


def test_parts_keep_their_recording_s_columns_and_each_row_has_its_own(project: Path) -> None:
    """Two transcripts of one recording are two rows; what the table called the recording can be the group."""
    write_said(project.parent, {"a": "One. Two.", "b": "six", "f": "eight"})
    with (project.parent / "said.csv").open("a", newline="") as file:
        csv.writer(file).writerow(("a.wav", "Three. Four.", "train"))
    settings = load(project, ["align.group=file"])
    lake = pipeline.open_lake(settings)
    pipeline.write_manifest(lake, settings)
    rows = lake.sql("SELECT item_id, key, attributes->>'file' AS file, attributes->>'text' AS said FROM manifest")
    found = sorted((row["key"], row["file"], row["said"]) for row in rows.to_pylist())
    assert found == [
        ("a.wav/1", "a.wav", "One."),
        ("a.wav/1", "a.wav", "Three."),
        ("a.wav/2", "a.wav", "Four."),
        ("a.wav/2", "a.wav", "Two."),
        ("b.wav/1", "b.wav", "six"),
        ("f.wav/1", "f.wav", "eight"),
    ]
    assert len(set(rows["item_id"].to_pylist())) == 6
    assert settings.sources[0].keys == ()


def test_segments_are_those_of_a_model_by_its_content(tmp_path: Path) -> None:
    for name in ("one", "same", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "model.safetensors").write_text(name[:1])
    choices = {name: Choice("transcript", {"model": str(tmp_path / name)}) for name in ("one", "same", "other")}
    (tmp_path / "same" / "model.safetensors").write_text("o")
    (tmp_path / "other" / "model.safetensors").write_text("x")
    names = {name: cut_name(choice, SEGMENTS.make(choice)) for name, choice in choices.items()}
    assert names["one"] == names["same"] != names["other"]
    words = Choice("transcript", {"model": str(tmp_path / "one"), "unit": "words"})
    assert cut_name(words, SEGMENTS.make(words)) != names["one"]
    for wrong, says in {"lines": "unit is 'lines', expected one of sentences, words", "words": "model is ''"}.items():
        with pytest.raises(ValueError, match=says):
            SourceSettings.of(
                name="s",
                modality="speech",
                files="f",
                segments={"kind": "transcript", "unit": wrong, "model": "m" * (wrong == "lines")},
            )


@given(st.text(st.sampled_from('ab1.!?… \n。—"'), max_size=40))
def test_sentences_hold_the_words_of_the_whole(transcript: str) -> None:
    units = TranscriptSegments(TranscriptSegments.Options(model="m"))._units(transcript)
    assert sum(len(words_of(unit)) for unit in units) == len(words_of(" ".join(units)))
    assert "".join("".join(units).split()) == "".join(transcript.split())


@given(st.lists(st.text(max_size=9), min_size=1, max_size=12))
def test_cuts_name_their_words_and_number(words: list[str]) -> None:
    name = "transcript 0123456789abcdef"
    parts = list(numbered(Entry("k", "a.wav"), name, {"file": "a"}, words))
    found = [found_by(part.cut or "") for part in parts]
    assert {one[0] for one in found} == {name} and len({one[1] for one in found}) == 1
    assert [one[2] for one in found] == list(range(1, len(words) + 1))
    assert [json.loads(part.attributes)["text"] for part in parts] == words
    other = next(numbered(Entry("k", "a.wav"), name, {}, [*words, "more"]))
    assert found_by(other.cut or "")[1] != found[0][1], "of other words it is another part"
    assert found_by("silence 0a1b") == ("silence 0a1b", "silence 0a1b", None) and found_by("1-2")[2] is None


def test_a_long_transcript_takes_its_own_length(tmp_path: Path, model: Path) -> None:
    words = [f"word{n}" for n in range(30_000)]  # of ten hours of talk at once
    kind = TranscriptSegments(TranscriptSegments.Options(model=str(model), unit="words"))
    entry = Entry("talk", "talk.wav", attributes=json.dumps({"text": " ".join(words)}))
    parts = list(kind.entries(iter([entry]), "transcript 0123456789abcdef", tmp_path))
    assert len(parts) == len(words)
    assert max(len(part.cut or "") + len(part.attributes) for part in parts) < 120
