"""Recordings that are cut: by silence and by given times, from the project file to samples and their bytes."""

import csv
import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from assets import featurizing, pipeline
from assets.asset_checks import check_balance, check_leakage
from assets.catalog import SEGMENTS
from assets.gate import write_raw
from assets.joins.parts import units
from assets.leakage import leakage
from assets.parts import Part, _contents
from assets.segments.base import content_id, cut_name
from assets.segments.silence import SilenceSegments, spans
from assets.source_settings import SourceSettings
from assets.times import parse_duration
from orchestration.automation import signature
from orchestration.inspection import check
from orchestration.project import load
from training import prediction_table
from training.children import environment
from training.family import Choice
from training.media import MediaError
from training.recordings import Speech, decode_speech
from training.schema import MODALITIES
from training.settings import MediaLimits
from training.spans import frames_of, span
from training.voice_activity import detect

RATE = 8000
FRAME = 30_000


def talk(*seconds: float, rate: int = RATE, seed: int = 0) -> np.ndarray:
    """Sound and silence in turns, sound first: buzzing as a voice does, of several harmonics, and no two alike."""
    rng, parts = np.random.default_rng(seed), []
    for n, length in enumerate(seconds):
        times = np.arange(round(length * rate)) / rate
        pitch = rng.uniform(100, 180)
        voice = sum(np.sin(2 * np.pi * pitch * k * times) / k for k in range(1, 12) if pitch * k < rate / 2)
        parts.append(0.2 * voice * (1 + np.sin(2 * np.pi * 4 * times)) / 2 if n % 2 == 0 else np.zeros(len(times)))
    return np.concatenate(parts).astype(np.float32)


def recording(waveform: np.ndarray, rate: int = RATE) -> Speech:
    return Speech(waveform, rate, "WAV", 1, len(waveform))


def seconds_of(cut: str) -> tuple[float, float]:
    start, end = cut.split("-")
    return int(start) / 1e6, int(end) / 1e6


def calls(**more: Any) -> SourceSettings:
    return SourceSettings.of(name="calls", modality="speech", files="calls", **more)


# The family


@pytest.mark.parametrize("kind", SEGMENTS.names())
def test_every_kind_keeps_to_the_contract(kind: str, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_text("{}")
    choice = Choice(kind, {name: str(tmp_path) for name in SEGMENTS.load(kind).located})
    segments = SEGMENTS.make(choice)
    assert cut_name(choice, segments) == cut_name(choice, SEGMENTS.make(choice))
    assert segments.finds == (type(segments).version > 0)
    others = [name for name in MODALITIES if name != segments.modality]
    source = SourceSettings.of(name="items", modality=segments.modality, files="items", segments=choice.plain())
    assert source.segments == choice
    for other in others:
        with pytest.raises(ValueError, match=rf"only .*{segments.modality}.* can be cut"):
            SourceSettings.of(name="items", modality=other, files="items", segments=choice.plain())


def test_a_setting_that_is_wrong_names_the_source() -> None:
    with pytest.raises(ValueError, match=r"source 'calls'.*aggressiveness is 4"):
        SourceSettings.of(
            name="calls", modality="speech", files="calls", segments={"kind": "silence", "aggressiveness": 4}
        )
    with pytest.raises(ValueError, match="under `recording`"):
        calls(segments={"kind": "times", "table": "s.csv"})
    with pytest.raises(ValueError, match="did you mean silence"):
        calls(segments="silent")


# By silence


@pytest.mark.parametrize("rate", [8000, 16_000, 22_050, 44_100, 48_000])
def test_speech_between_pauses_is_found_at_any_rate(rate: int) -> None:
    waveform = np.concatenate([np.zeros(rate, np.float32), talk(1.5, 1.2, 0.9, 0.2, 0.9, 1.5, rate=rate)])
    cuts = [seconds_of(cut) for cut in SilenceSegments(SilenceSegments.Options()).cuts(recording(waveform, rate))]
    expected = [(1.0, 2.5), (3.7, 5.7)]
    assert len(cuts) == 2, "the pause of 0.2 s divides nothing"
    for (start, end), (first, last) in zip(cuts, expected, strict=True):
        assert start <= first and end >= last, "all that is said is in a segment"
        assert first - start < 0.3 and end - last < 0.6


@pytest.mark.parametrize(
    ("name", "value"),
    [("aggressiveness", 3), ("shortest_silence", 0.1), ("shortest", 0.5), ("longest", 1.0), ("padding", 0.0)],
)
def test_each_option_changes_what_is_cut(name: str, value: float) -> None:
    content = recording(talk(1.5, 1.0, 0.3, 0.25, 1.5, 1.0, 0.2, 1.0))
    before, after = (SilenceSegments(SilenceSegments.Options(**given)) for given in ({}, {name: value}))
    assert before.cuts(content) != after.cuts(content)
    changed = {"kind": "silence", name: value}
    assert calls(segments="silence").cutter()[0] != calls(segments=changed).cutter()[0]


def test_a_long_stretch_is_cut_where_it_is_quietest() -> None:
    waveform = talk(8)
    waveform[5 * RATE : int(5.1 * RATE)] *= 0.01
    options = SilenceSegments.Options(longest=6, shortest_silence=2)
    (first, second) = SilenceSegments(options).cuts(recording(waveform))
    assert seconds_of(first)[1] == seconds_of(second)[0] == pytest.approx(5.05, abs=0.07)


def test_where_nobody_speaks_nothing_is_made() -> None:
    with pytest.raises(MediaError, match=r"no speech was found in its 2\.0 s: lower") as caught:
        SilenceSegments(SilenceSegments.Options()).cuts(recording(np.zeros(2 * RATE, np.float32)))
    assert caught.value.reason == "no_speech"


@given(
    flags=st.lists(st.tuples(st.booleans(), st.integers(1, 60)), max_size=30),
    power=st.integers(0, 2**32 - 1),
    cut_short=st.integers(0, FRAME - 1),
    options=st.builds(
        SilenceSegments.Options,
        shortest_silence=st.floats(0.03, 2),
        shortest=st.floats(0, 0.2),
        longest=st.floats(0.4, 5),
        padding=st.floats(0, 1),
    ),
)
def test_segments_lie_within_do_not_overlap_and_cover_what_is_said(
    flags: list[tuple[bool, int]], power: int, cut_short: int, options: SilenceSegments.Options
) -> None:
    speech = np.array([flag for flag, count in flags for _ in range(count)], bool)
    length = max(0, len(speech) * FRAME - cut_short)
    found = spans(speech, np.random.default_rng(power).random(len(speech)), length, options)
    ends = [0, *(end for _, end in found)]
    assert all(before <= start < end <= length for before, (start, end) in zip(ends, found, strict=False))
    assert all(end - start <= options.longest * 1e6 for start, end in found)
    edges = np.flatnonzero(np.diff(speech, prepend=False, append=False)).reshape(-1, 2)
    for first, last in edges * FRAME:
        if last - first >= options.shortest * 1e6:
            inside = sum(max(0, min(end, last) - max(start, first)) for start, end in found)
            assert inside == min(last, length) - first


def test_real_words_are_covered() -> None:
    (seven, rate), (three, _) = spoken()
    gap = np.zeros(rate, np.float32)
    content = recording(np.concatenate([gap, seven, gap, three, gap]), rate)
    cuts = SilenceSegments(SilenceSegments.Options()).cuts(content)
    loud = np.flatnonzero(np.abs(content.waveform) > 0.02) / rate
    parts = [seconds_of(cut) for cut in cuts]
    assert len(parts) == 2
    assert all(any(start <= time <= end for start, end in parts) for time in loud)
    speech_F, _ = detect(content, 2)
    assert 0.3 < speech_F.mean() < 0.9


SPEAK = """
import sys
from orchestration.examples.digits import Take, _speak
takes = [Take("", 7, "en+adam", 150, 50, 0.0, 0.0), Take("", 3, "en-us+Alicia", 150, 50, 0.0, 0.0)]
sys.stdout.buffer.write(b"END".join(wav for _, wav in _speak(takes)))
"""


def spoken() -> list[tuple[np.ndarray, int]]:
    """Two words by espeak-ng, which keeps global state: in a process of its own."""
    done = subprocess.run([sys.executable, "-c", SPEAK], capture_output=True, check=True, env=environment())
    return [soundfile.read(io.BytesIO(wav), dtype="float32") for wav in done.stdout.split(b"END")]


LONG = """
import hashlib, resource, sys
import pyarrow as pa
from assets.contents import process_contents
from assets.processing import PARTS, Step
from assets.segments.silence import SilenceSegments
from training.features import FeatureSettings
from training.processor import Processor
from training.schema import MANIFEST
from training.settings import MediaLimits


class Files:
    def open(self, entry):
        with open(entry.uri, "rb") as file:
            while piece := file.read(2**20):
                yield piece


pauses = {"pauses": SilenceSegments(SilenceSegments.Options())}
step = Step("speech", Processor(FeatureSettings(), MediaLimits()), {}, pauses)
for path in sys.argv[1:]:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    item = {"item_id": path, "source": "calls", "modality": "speech", "uri": path, "sha256": digest}
    asked = [{"item_id": path, "source": "calls", "cut": "pauses", "need": ["clean", "features"]}]
    rows = pa.Table.from_pylist([item], MANIFEST).append_column("parts", pa.array([asked], PARTS))
    outcome = process_contents(rows.to_batches()[0], step, {"calls": Files()})
    print(outcome.clean.num_rows, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.slow
def test_a_long_recording_takes_its_size_and_that_of_its_file(tmp_path: Path) -> None:
    for name, count in {"short": 1, "long": 60}.items():
        with soundfile.SoundFile(tmp_path / f"{name}.wav", "w", 48_000, 1, "PCM_16") as file:
            for n in range(count):
                file.write(talk(7, 3, rate=48_000, seed=n))
    command = [sys.executable, "-c", LONG, str(tmp_path / "short.wav"), str(tmp_path / "long.wav")]
    done = subprocess.run(command, capture_output=True, check=True, text=True, env=environment())
    (_, before), (count, peak) = (map(int, line.split()) for line in done.stdout.splitlines())
    decoded = 600 * 48_000 * 4
    assert count == 60
    assert peak - before < 2.6 * decoded, "samples, the file twice (read, and as the decoder has it), and the features"


# The part of a recording


@given(rate=st.sampled_from([8000, 11_025, 44_100, 48_000]), frames=st.integers(1, 10**6), data=st.data())
def test_a_part_has_the_frames_of_its_times(rate: int, frames: int, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, frames - 1))
    last = data.draw(st.integers(first + 1, frames))
    content = recording(np.arange(frames, dtype=np.float32), rate)
    part = content.part(span(round(first / rate * 1e6), round(last / rate * 1e6)))
    assert (part.waveform[0], part.frames) == (first, last - first)
    assert part.start == first / rate and np.shares_memory(part.waveform, content.waveform)


def test_a_part_of_what_cannot_be_decoded_has_no_bytes() -> None:
    item = {"modality": "speech", "data": spoken_file()}
    parts = {name: Part("0-250000", 1, {}) for name in ("a", "b")}
    for data, lengths in ((item["data"], [RATE // 4] * 2), (b"no recording", [])):
        found = [part for _, part in _contents(item | {"data": data}, parts, parts, MediaLimits())]
        assert [len(soundfile.read(io.BytesIO(part))[0]) for part in found if part] == lengths and len(found) == 2


def spoken_file() -> bytes:
    file = io.BytesIO()
    soundfile.write(file, talk(1.0), RATE, format="WAV")
    return file.getvalue()


def test_a_part_that_is_not_there() -> None:
    content = recording(talk(1.0))
    for cut in ("1000000-1200000", "500000-1600000"):
        with pytest.raises(MediaError, match=r"not within the recording of 1\.000 s") as caught:
            content.part(cut)
        assert caught.value.reason == "beyond_end"
    short = content.part("500000-1400000")
    assert short.frames == RATE // 2 and "was cut there" in short.warnings[0]
    with pytest.raises(ValueError, match="materialize the manifest"):
        content.part("silence 0123")
    assert frames_of("62-63", RATE) == (0, 1)


@pytest.mark.parametrize(
    ("written", "microseconds"),
    [("0", 0), ("12.5", 12_500_000), ("1:02", 62_000_000), ("01:00:00.001", 3_600_001_000), ("00:00:01,5", 1_500_000)],
)
def test_times_as_people_write_them(written: str, microseconds: int) -> None:
    assert parse_duration(written) == microseconds


@pytest.mark.parametrize("written", ["", "nan", "inf", "-1", "soon", "1:75", "2024-01-01", "1e12"])
def test_what_is_no_time_in_a_recording(written: str) -> None:
    with pytest.raises(ValueError, match="is no time in a recording"):
        parse_duration(written)


# In a project

PROJECT = """
name: calls
sources:
  - name: calls
    modality: speech
    files: calls
    segments: {kind: times, table: segments.csv, recording: call, key: turn, start: from, end: to}
  - {name: transcripts, modality: text, table: said.csv, column: said, key: turn}
  - {name: whole, modality: speech, files: calls, optional: true, use: noise}
align: {label: mood, split: {train: 0.5, validation: 0.2}}
features:
  speech: {sample_rate: 4000, mels: 16, coefficients: 8}
engine: {workers: 2}
"""
TURNS = [
    # turn, call, from, to, mood
    *((f"a{n}", "a", n, n + 1, "calm") for n in range(4)),
    ("b0", "b.wav", "0:00", "0:01.500", "angry"),
    ("b1", "b", 1.4, 2.8, "calm"),
    ("b2", "b", 3.0, 3.3, "calm"),  # 0.3 s behind its end
    ("late", "b", 2.5, 9, "calm"),
    ("backwards", "a", 2, 1, "calm"),
    ("nothing", "a", "nan", 1, "calm"),
    ("nobody", "z", 0, 1, "calm"),
    ("unnamed", "", 0, 1, "calm"),
    ("a0", "a", 0, 1, "calm"),
]


def write_calls(folder: Path, turns: list[tuple[Any, ...]] = TURNS) -> None:
    (folder / "calls").mkdir(parents=True, exist_ok=True)
    for number, (name, length) in enumerate({"a": 4, "b": 3, "c": 2}.items()):
        path = folder / "calls" / f"{name}.wav"
        if not path.exists():
            soundfile.write(path, talk(length, seed=number), RATE)
    with (folder / "segments.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("turn", "call", "from", "to", "mood"), *turns])
    names = dict.fromkeys(turn[0] for turn in turns)
    with (folder / "said.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("turn", "said"), *((name, f"Words of turn {name}.") for name in names)])


@pytest.fixture
def project(tmp_path: Path, home: Path) -> Path:
    write_calls(tmp_path / "calls")
    (tmp_path / "calls" / "project.yaml").write_text(PROJECT)
    return tmp_path / "calls" / "project.yaml"


def data_side(path: Path) -> tuple[pipeline.Lake, dict[str, dict[str, int]]]:
    project = load(path)
    lake = pipeline.open_lake(project)
    pipeline.write_manifest(lake, project)
    counts = {m: featurizing.process_modality(lake, project, m) for m in project.modalities}
    pipeline.write_samples(lake, project)
    pipeline.write_dataset(lake, project)
    return lake, counts


@pytest.mark.slow
def test_segments_by_times_and_whole_recordings_of_the_same_files(
    project: Path, decoded_sizes: dict[str, list[int | None]]
) -> None:
    lake, _ = data_side(project)
    assert len(decoded_sizes["speech"]) == 3, "each recording once, however many segments it has"
    settings = load(project)

    rows = lake.sql(
        "SELECT key, start, round(seconds, 4) AS seconds, len(warnings) AS warned FROM manifest m "
        "JOIN clean_speech c ON parent_id = sha256 AND m.cut = c.cut ORDER BY key"
    ).to_pylist()
    expected = [(f"a{n}", float(n), 1.0, 0) for n in range(4)]
    expected += [("b0", 0.0, 1.5, 0), ("b1", 1.4, 1.4, 0)]
    assert [(row["key"], row["start"], row["seconds"], row["warned"]) for row in rows] == expected
    whole = lake.sql("SELECT start, seconds FROM clean_speech WHERE id = parent_id ORDER BY seconds").to_pylist()
    assert whole == [{"start": 0.0, "seconds": float(length)} for length in (2, 3, 4)]

    keys = lake.sql("SELECT item_id, key FROM manifest").to_pylist()
    named = {row["item_id"]: row["key"] for row in keys}
    refused = lake.sql("SELECT * FROM quarantine WHERE modality = 'speech'").to_pylist()
    refused = {row["key"] or named.get(row["item_id"]): row for row in refused}
    reasons = {key: (row["outcome"], row["reason"]) for key, row in refused.items()}
    assert reasons == {
        "late": ("quarantined", "beyond_end"),
        "b2": ("quarantined", "beyond_end"),
        "backwards": ("quarantined", "malformed"),
        "nothing": ("quarantined", "malformed"),
        "nobody": ("quarantined", "not_found"),
        "unnamed": ("quarantined", "absent"),
        "a0": ("duplicate", "duplicate"),
        "c": ("unmatched", "no_segments"),
    }
    assert "line 10" in refused["backwards"]["message"] and "'to' is 1, 'from' is 2" in refused["backwards"]["message"]
    assert "from 2.500 s to 9.000 s" in refused["late"]["message"]
    assert check_balance(lake, settings).passed
    counted = pipeline.balance(lake, settings).counts["speech"]
    assert (counted["passed"], counted["unmatched"], counted["lost"], counted["twice"]) == (9, 1, 0, 0)

    samples = lake.sql("SELECT sample_id, label, speech_id, split FROM samples WHERE speech_id IS NOT NULL").to_pylist()
    assert {row["sample_id"]: row["label"] for row in samples} == {
        **{f"a{n}": "calm" for n in range(4)},
        "b0": "angry",
        "b1": "calm",
    }
    a = lake.sql("SELECT sha256 FROM manifest WHERE key = 'a0'")["sha256"][0].as_py()
    assert next(r["speech_id"] for r in samples if r["sample_id"] == "a1") == content_id(a, "1000000-2000000")
    assert check_leakage(lake, settings).passed
    found = pipeline.write_samples(lake, settings).findings
    assert [f.message for f in found if f.code == "overlapping_segments"] == [
        "source calls: overlaps of 1 segment with an earlier one of the recording, such as "
        f"{project.parent}/calls/b.wav at 1.400 s"
    ]
    assert len(pipeline.noise(lake, settings)) == 3
    spec = SimpleNamespace(lake=lake.uri, storage_options={}, features=settings.features)
    assert prediction_table._inputs(spec, ["a1"])["a1"]["speech"] == "a.wav, 1.00 s to 2.00 s"

    again = data_side(project)[1]
    assert again["speech"]["processed"] == 0 and len(decoded_sizes["speech"]) == 3
    before, sensed = lake.read("clean_speech").num_rows, signature(settings)
    write_calls(project.parent, [turn if turn[0] != "a1" else ("a1", "a", 1.25, 2, "calm") for turn in TURNS])
    assert signature(load(project)) != sensed
    again = data_side(project)[1]
    assert again["speech"]["processed"] == 1 and len(decoded_sizes["speech"]) == 4, "only the segment that changed"
    assert lake.read("clean_speech").num_rows == before + 1

    pipeline_rows = project.parent / "raw.parquet"
    split = lake.sql("SELECT split FROM samples WHERE sample_id = 'a1'")["split"][0].as_py()
    write_raw(lake, pipeline_rows, split, settings.make_sources())
    (row,) = (r for r in pq.read_table(pipeline_rows).to_pylist() if r["sample_id"] == "a1")
    given = decode_speech(row["speech"], MediaLimits())
    np.testing.assert_array_equal(given.waveform, talk_of(project, "a")[RATE * 5 // 4 : RATE * 2])


def test_a_file_that_changed_unseen_is_read_anew_for_all_of_its_parts(project: Path, monkeypatch: Any) -> None:
    """Size and time say nothing, and only one of its segments had anything to be done."""
    monkeypatch.setattr("assets.storage.last_change", lambda status: 1)
    settings = load(project)
    lake = pipeline.open_lake(settings)

    def processed() -> tuple[int, list[str]]:
        pipeline.write_manifest(lake, settings)
        count = featurizing.process_modality(lake, settings, "speech")["processed"]
        unread = lake.sql("SELECT message FROM quarantine WHERE stage = 'clean' AND fingerprint IS NULL")
        return count, [message.split(": ")[-1] for message in unread["message"].to_pylist()]

    processed()
    part = lake.sql("SELECT id FROM clean_speech WHERE start = 1 AND id <> parent_id")["id"][0].as_py()
    lake.open("speech_features").delete(f"id = '{part}'")
    soundfile.write(project.parent / "calls" / "a.wav", talk(4, seed=9), RATE)
    assert processed() == (1, ["changed since it was listed; run again"])
    assert processed() == (5, []), "the four segments of a, and all of it"
    assert processed() == (0, [])


def talk_of(project: Path, name: str) -> np.ndarray:
    return decode_speech((project.parent / "calls" / f"{name}.wav").read_bytes(), MediaLimits()).waveform


def test_two_ways_to_cut_the_same_files_stand_beside_each_other(project: Path) -> None:
    text = project.read_text()
    silent = "  - {name: pauses, modality: speech, files: calls, segments: silence}\nalign:"
    write_calls(project.parent)
    soundfile.write(project.parent / "calls" / "a.wav", talk(1.6, 0.8, 1.6), RATE)
    (project.parent / "calls" / "mute.wav").write_bytes(quiet())
    project.write_text(text.replace("\nalign:", f"\n{silent}"))
    lake, counts = data_side(project)
    query = "SELECT source, count(DISTINCT c.id) AS n FROM manifest m JOIN clean_speech c ON parent_id = sha256 AND "
    rows = lake.sql(query + "c.cut IS NOT DISTINCT FROM m.cut GROUP BY 1 ORDER BY 1").to_pylist()
    assert {row["source"]: row["n"] for row in rows} == {"calls": 6, "pauses": 4, "whole": 4}
    reasons = lake.sql("SELECT reason FROM quarantine WHERE stage = 'clean' ORDER BY 1")["reason"].to_pylist()
    assert reasons == ["beyond_end", "beyond_end", "no_speech"]
    assert check_balance(lake, load(project)).passed
    project.write_text(
        project.read_text().replace("segments: silence", "segments: {kind: silence, shortest_silence: 1}")
    )
    lake, counts = data_side(project)
    rows = lake.sql(query + "c.cut IS NOT DISTINCT FROM m.cut GROUP BY 1 ORDER BY 1").to_pylist()
    assert {row["source"]: row["n"] for row in rows} == {"calls": 6, "pauses": 3, "whole": 4}
    assert counts["speech"]["processed"] == 4, "the items of one source; the others' rows stand"
    (made,) = lake.sql(
        "SELECT count(*) AS n, count(DISTINCT concat(id, fingerprint)) AS rows FROM speech_features"
    ).to_pylist()
    assert made["n"] == made["rows"] == 30, "a part that is found again keeps its features"


def quiet() -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.zeros(RATE, np.float32), RATE, format="WAV")
    return file.getvalue()


def test_parts_of_a_recording_fall_into_one_split(project: Path) -> None:
    turns = [(f"{call}{n}", call, n / 10, n / 10 + 0.1, "calm") for call in "abc" for n in range(18)]
    write_calls(project.parent, turns)
    lake, _ = data_side(project)
    rows = lake.sql(
        "SELECT left(sample_id, 1) AS call, count(DISTINCT split) AS n, count(*) AS samples FROM samples GROUP BY 1"
    )
    assert [(row["n"], row["samples"]) for row in rows.to_pylist()] == [(1, 18)] * 3
    assert check_leakage(lake, load(project)).passed
    torn = load(project, ["align.group=transcripts.turn"])
    pipeline.write_samples(lake, torn)
    leak = check_leakage(lake, torn)
    assert not leak.passed and "of speech stand" in (leak.description or "")
    assert "align.group" in (leak.description or "") and "allow_shared: [speech]" in (leak.description or "")
    assert check_leakage(lake, replace(torn, align=replace(torn.align, allow_shared=("speech",)))).passed


def test_a_part_ties_its_recording_wherever_it_stands_among_several(project: Path) -> None:
    turns = [(f"{call}{n}", call, n / 10, n / 10 + 0.1, "calm") for call in "abc" for n in range(1, 12)]
    write_calls(project.parent, [*turns, ("both", "a", 0, 0.1, "calm"), ("both", "b", 0, 0.1, "calm")])
    project.write_text(project.read_text().replace("validation: 0.2", "validation: 0, seed: 2"))
    lake, _ = data_side(project)
    several = load(project, ["align.several.speech=2"])
    written = pipeline.write_samples(lake, several)
    assert lake.sql("SELECT sample_id FROM samples WHERE len(speech_more) = 1").num_rows == 1
    assert any(f.code == "tied_samples" and "tie 23 of 34" in f.message for f in written.findings)
    sides = lake.sql("SELECT left(sample_id, 1) = 'c' AS is_c, list(DISTINCT split) AS sides FROM samples GROUP BY 1")
    assert {row["is_c"]: row["sides"] for row in sides.to_pylist()} == {True: ["test"], False: ["train"]}
    samples, manifest = lake.read("samples"), lake.sql("SELECT item_id, sha256, cut FROM manifest")
    torn = [{**row, "split": "test" if row["speech_more"] else "train"} for row in samples.to_pylist()]
    leaks = leakage(pa.Table.from_pylist(torn, samples.schema), several.align, manifest).to_pylist()
    assert [(leak["kind"], leak["samples"]) for leak in leaks] == [("item", 12), ("item", 12)]


@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from("123456")), max_size=20))
def test_what_recordings_tie_together_is_one_unit(pairs: list[tuple[str, str]]) -> None:
    keys, parents = (np.array([pair[n] for pair in pairs], object) for n in (0, 1))
    tied = {row["split_key"]: row["tied_unit"] for row in units(keys, parents).to_pylist()}
    together = {key: {key} for key in keys}
    for _ in pairs:  # until nothing more hangs together
        for one, parent in pairs:
            for other, same in pairs:
                if parent == same:
                    together[one] |= together[other]
                    together[other] |= together[one]
    assert set(tied) == {key for key, others in together.items() if len(others) > 1}
    for one in tied:
        assert {other for other in tied if tied[other] == tied[one]} == together[one]


def test_check_counts_segments_by_their_table(project: Path) -> None:
    found = check(load(project))
    assert (found.sources["calls"].listed, found.sources["calls"].seen) == (8, 14)
    assert found.refused["no_segments"] == 1 and sum(found.samples.values()) == 12
    assert any("beyond" in message or "not within" in message for message in found.unreadable)


def test_all_segments_of_a_key_become_samples(project: Path) -> None:
    for name, count in {"train_a": 80, "test_b": 1}.items():
        (project.parent / "talks").mkdir(exist_ok=True)
        soundfile.write(project.parent / "talks" / f"{name}.wav", talk(*[0.3, 0.3] * count), RATE)
    cut = "segments: {kind: silence, shortest_silence: 0.1, padding: 0}"
    sources = f"sources=[{{name: talks, modality: speech, files: talks, path: '{{split}}_{{name}}', {cut}}}]"
    settings = load(project, [sources, "align.label=name", "align.split={column: split}", "align.max_per_key=2"])
    assert [finding.code for finding in check(settings).findings] == ["unknown_segments"]
    lake = pipeline.open_lake(settings)
    pipeline.write_manifest(lake, settings)
    featurizing.process_modality(lake, settings, "speech")
    pipeline.write_samples(lake, settings)
    names = lake.sql("SELECT sample_id, label FROM samples")
    assert len(set(names["sample_id"].to_pylist())) == lake.read("clean_speech").num_rows == names.num_rows > 64
    assert check_balance(lake, settings).passed


def test_times_in_the_own_table_of_a_source(tmp_path: Path) -> None:
    write_calls(tmp_path)
    source = SourceSettings.of(
        name="calls",
        modality="speech",
        files="calls",
        table="segments.csv",
        file="call",
        key="turn",
        segments={"kind": "times", "start": "from", "end": "to"},
    )
    entries = {entry.key: entry for entry in source.make(tmp_path).list()}
    assert entries["b1"].cut == "1400000-2800000" and entries["backwards"].reason == "malformed"
    assert entries["c.wav"].reason == "no_segments" and "'from' and 'to'" in entries["c.wav"].message


def test_a_name_that_fits_two_recordings_cuts_none(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        (tmp_path / "calls" / folder).mkdir(parents=True)
        soundfile.write(tmp_path / "calls" / folder / "1.wav", talk(1.0), RATE)
    (tmp_path / "segments.csv").write_text("call,start,end\n1.wav,0,1\nx/1,0,1\ny/1.wav,0.5,1\n")
    source = calls(segments={"kind": "times", "table": "segments.csv", "recording": "call"})
    entries = list(source.make(tmp_path).list())
    assert [(entry.key, entry.reason, entry.cut) for entry in entries] == [
        ("1.wav", "ambiguous", None),
        ("x/1", None, "0-1000000"),
        ("y/1", None, "500000-1000000"),
    ]
    assert "fits" in entries[0].message and "x/1.wav and" in entries[0].message


def test_a_table_that_fits_nothing_ends_the_run(tmp_path: Path) -> None:
    write_calls(tmp_path, [("x", "nowhere", 0, 1, "calm")])
    source = calls(
        segments={"kind": "times", "table": "segments.csv", "recording": "call", "start": "from", "end": "to"}
    )
    with pytest.raises(ValueError, match=r"none of its rows names a recording.*'nowhere'.*'a', 'b', 'c'"):
        list(source.make(tmp_path).list())
