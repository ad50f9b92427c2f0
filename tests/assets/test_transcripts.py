"""Tables of cues with times: subtitles, annotations, transcripts, as programs write them and as people damage them."""

import json
import textwrap
from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assets.formats.base import Record
from assets.scan import scan
from assets.source_settings import SourceSettings
from assets.sources.base import SourceError
from assets.table_settings import TableSettings
from assets.tables import read_table


def read(path: Path, *required: str, rows: str | None = None) -> list[Record]:
    return list(read_table(path, TableSettings(rows=rows), required))


def cells(records: Sequence[Record], *names: str) -> list[tuple[str | None, ...]]:
    """Of the rows that can be used."""
    return [tuple(record.values.get(name) for name in names) for record in records if record.problem is None]


def problems(records: Sequence[Record]) -> dict[int, str]:
    return {record.line: record.problem for record in records if record.problem is not None}


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(textwrap.dedent(text).encode(encoding))
    return path


# Subtitles


SRT = """\
    1
    00:00:01,000 --> 00:00:02,500
    <i>Hello</i> {\\an8}you
    second <font color="#fff">line</font> &amp; <3

    2
    00:00:02,250 --> 00:00:04,000 X1:100 X2:200
    It overlaps.
    """


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_subtitles_of_subrip(tmp_path: Path, encoding: str, newline: str) -> None:
    path = write(tmp_path / "film.en.srt", textwrap.dedent(SRT).replace("\n", newline), encoding)
    records = read(path)
    assert [record.line for record in records] == [2, 7] and not problems(records)
    assert cells(records, "file", "number", "id", "start", "end", "text") == [
        ("film.en", "1", "1", "1", "2.5", "Hello you\nsecond line & <3"),
        ("film.en", "2", "2", "2.25", "4", "It overlaps."),
    ]


def test_damaged_subtitles_cost_their_own_cue_alone(tmp_path: Path) -> None:
    path = write(
        tmp_path / "t.srt",
        """\
        1
        00:00:01.5 --> 00:00:02,500
        A dot and one digit
        2
        00:00:03,000 --> 00:00:04,000
        No blank line before
        42
        00:00:0x,000 --> 00:00:06,000
        Lost

        4
        00:00:09,000 --> 00:00:08,000
        Backwards

        5
        00:00:10,000 --> 00:00:11,000
        <b> </b>

        6
        00:75:00,000 --> 01:15:01,000
        Seventy-five minutes

        Nothing says when

        7
        123:00:00,000 --> 123:00:00,000
        Late, and of no length
        """,
    )
    records = read(path)
    assert cells(records, "number", "start", "end", "text") == [
        ("1", "1.5", "2.5", "A dot and one digit"),
        ("2", "3", "4", "No blank line before"),
        ("8", "442800", "442800", "Late, and of no length"),
    ]
    assert problems(records) == {
        8: "line 8: '00:00:0x,000' is no time: expected hours, minutes and seconds, as in 00:01:02.500",
        12: "line 12: ends at 8 s, before it begins at 9 s",
        16: "line 16: has no text",
        20: "line 20: '00:75:00,000' is no time: expected hours, minutes and seconds, as in 00:01:02.500",
        23: "line 23: has no times: a line with --> stands before the text of a cue",
    }


def test_webvtt_has_names_voices_and_blocks_that_are_no_cues(tmp_path: Path) -> None:
    path = write(
        tmp_path / "t.vtt",
        """\
        WEBVTT - A title
        Kind: captions

        STYLE
        ::cue { color: red }

        NOTE what follows
        is no cue

        intro
        00:01.000 --> 00:02.000 align:start position:0%
        <v.loud Mary Ann>Hi <c.yellow>you</c> <00:01.500>&lt;there&gt;</v>

        00:00:03.000 --> 00:00:04.000
        <v Bo>One</v>
        <v Al>Two

        REGION
        id:fred
        """,
    )
    records = read(path)
    assert not problems(records)
    assert cells(records, "id", "speaker", "start", "text") == [
        ("intro", "Mary Ann", "1", "Hi you <there>"),
        (None, "Bo; Al", "3", "One\nTwo"),
    ]


# Praat


LONG = """\
    File type = "ooTextFile"
    Object class = "TextGrid"

    xmin = 0
    xmax = 2.3
    tiers? <exists>
    size = 3
    item []:
        item [1]:
            class = "IntervalTier"
            name = "words"
            xmin = 0
            xmax = 2.3
            intervals: size = 4
            intervals [1]:
                xmin = 0
                xmax = 0.30000000000000004
                text = ""
            intervals [2]:
                xmin = 0.30000000000000004
                xmax = 1.1
                text = "he ""said"" 7"
            intervals [3]:
                xmin = 1.1
                xmax = 1.5
                text = "IntervalTier"
            intervals [4]:
                xmin = 1.5
                xmax = 2.3
                text = ""
        item [2]:
            class = "IntervalTier"
            name = "empty"
            xmin = 0
            xmax = 2.3
            intervals: size = 0
        item [3]:
            class = "TextTier"
            name = "clicks ! 1"
            xmin = 0
            xmax = 2.3
            points: size = 1
            points [1]:
                number = 0.5
                mark = "click"
    """
SHORT = """\
    File type = "ooTextFile"
    Object class = "TextGrid"

    0
    2.3
    <exists>
    3
    "IntervalTier"
    "words"
    0
    2.3
    4
    0
    0.30000000000000004
    ""
    0.30000000000000004
    1.1
    "he ""said"" 7"
    1.1
    1.5
    "IntervalTier"
    1.5
    2.3
    ""
    "IntervalTier"
    "empty"
    0
    2.3
    0
    "TextTier"
    "clicks ! 1"
    0
    2.3
    1
    0.5
    "click"
    """


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-be"])
@pytest.mark.parametrize("text", [LONG, SHORT])
def test_both_forms_of_a_textgrid_say_the_same(tmp_path: Path, text: str, encoding: str) -> None:
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    records = read(write(tmp_path / "t.TextGrid", mark + textwrap.dedent(text), encoding))
    assert cells(records, "tier", "number", "start", "end", "text") == [
        ("words", "1", "0.3", "1.1", 'he "said" 7'),
        ("words", "2", "1.1", "1.5", "IntervalTier"),
        ("clicks ! 1", "3", "0.5", "0.5", "click"),
    ]
    assert not problems(records)


def test_a_damaged_textgrid_loses_what_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "t.TextGrid"
    records = read(write(path, LONG.replace("xmax = 1.1\n", "xmax = 1,1\n")))
    assert cells(records, "text") == [("IntervalTier",), ("click",)]
    assert problems(records) == {20: "line 20: has 1 times before its text, expected 2"}
    records = read(write(path, SHORT.partition('    "IntervalTier"\n    1.5')[0]))
    assert cells(records, "text") == [('he "said" 7',)]
    assert problems(records) == {20: "line 20: tier 'words' ends after 2 texts, before all that it announced"}
    for text in ('he "said" 7', 'he "said 7', '"said" 7'):
        records = read(write(path, LONG.replace('he ""said"" 7', text)))
        assert cells(records, "text") == [("IntervalTier",), ("click",)]
        assert "line 20: has a text that does not end at its quote" in problems(records)[20]
    records = read(write(path, LONG.replace('""said"" 7"', "said 7")))  # whatever follows is within quotes
    assert cells(records, "text") == [("click",)] and "double a quote" in problems(records)[20]
    records = read(write(path, "no such file type"))
    assert problems(records) == {1: "line 1: is no TextGrid in text form: save it as one in Praat"}


# Lines of words


def test_words_and_turns_of_scoring_tools(tmp_path: Path) -> None:
    text = ";; made by hand\na/r1 A 0.10 0.20 hello 0.9\na/r1 A 0.3 x you\na/r1 A 0.3 0.1\n\nr2 1 1 0.5 NA NA lex Bo\n"
    records = read(write(tmp_path / "t.ctm", text))
    assert cells(records, "file", "number", "start", "end", "text", "confidence", "channel", "speaker") == [
        ("a/r1", "1", "0.1", "0.3", "hello", "0.9", "A", None),
        ("r2", "4", "1", "1.5", "NA", "NA", "1", "Bo"),
    ]
    assert problems(records) == {
        3: "line 3: 'x' is no time in seconds",
        4: "line 4: has 4 words, expected 5 to 8: file channel start duration text confidence type speaker",
    }
    lines = (
        "SPKR-INFO r1 1 <NA> <NA> <NA> unknown Bo <NA>",
        "SPEAKER r1 1 0.1 0.2 <NA> <NA> Bo <NA> <NA>",
        "LEXEME r1 1 0.1 -0.2 hi lex Bo 0.5",
    )
    records = read(write(tmp_path / "t.rttm", "\n".join(lines)))
    assert cells(records, "file", "type", "start", "end", "text", "speaker") == [
        ("r1", "SPEAKER", "0.1", "0.3", None, "Bo")
    ]
    assert problems(records) == {3: "line 3: ends at -0.1 s, before it begins at 0.1 s"}


# JSON of recognisers


WORD = {"start": 0.1, "end": 0.30000000000000004}
SAME = [("r", "1", "0.1", "0.3", "hi")]


@pytest.mark.parametrize(
    ("document", "more"),
    [
        ({"words": [{"word": "hi", **WORD}]}, {}),
        (
            {"text": " hi", "segments": [{"id": 0, "start": 0, "end": 1, "text": " hi", "tokens": [1],
             "words": [{"word": " hi", **WORD, "probability": 0.5}]}], "language": "en"},
            {"confidence": "0.5"},
        ),
        ({"text": "hi", "segments": [{"start": 0, "end": 1, "text": "hi"}], "words": [{"word": "hi", **WORD}]}, {}),
        (
            {"segments": [{"text": "hi", "speaker": "S1", "words": [{"word": "hi", **WORD, "score": 1.0}], "start": 0}],
             "word_segments": [{"word": "hi", **WORD}]},
            {"speaker": "S1", "confidence": "1"},
        ),
        ({"result": [{"conf": 1.0, "word": "hi", **WORD}], "text": "hi"}, {"confidence": "1"}),
        (
            {"jobName": "r", "results": {"transcripts": [{"transcript": "Hi."}], "items": [
                {"start_time": "0.1", "end_time": "0.3", "alternatives": [{"confidence": "0.9", "content": "hi"}],
                 "type": "pronunciation", "speaker_label": "spk_0"},
                {"alternatives": [{"confidence": "0.0", "content": "."}], "type": "punctuation"}]}},
            {"speaker": "spk_0", "confidence": "0.9"},
        ),
        (
            {"results": [{"alternatives": [{"transcript": "hi", "words": [
                {"startTime": "0.100s", "endTime": "0.300s", "word": "hi"}]}], "channelTag": 2}]},
            {"channel": "2"},
        ),
        (
            {"metadata": {"channels": 2}, "results": {"channels": [
                {"alternatives": [{"transcript": "", "words": []}]},
                {"alternatives": [{"words": [{"word": "hi", **WORD, "punctuated_word": "Hi."}]}]}]}},
            {"channel": "1", "punctuated_word": "Hi."},
        ),
        (
            {"monologues": [{"speaker": 3, "elements": [{"type": "text", "value": "hi", "ts": 0.1, "end_ts": 0.3},
                                                        {"type": "punct", "value": "."}]}]},
            {"speaker": "3"},
        ),
        (
            {"id": "6c", "status": "completed", "text": "hi", "words": [
                {"text": "hi", "start": 100, "end": 300, "confidence": 0.5, "speaker": "A"}],
             "utterances": None, "audio_duration": 281},
            {"speaker": "A", "confidence": "0.5"},
        ),
    ],
)  # fmt: skip
def test_words_of_recognisers(tmp_path: Path, document: dict[str, Any], more: dict[str, str]) -> None:
    path = tmp_path / "r.json"
    for indent in (None, 1):
        path.write_text(json.dumps(document, indent=indent))
        records = read(path, "file", "text")
        assert cells(records, "file", "number", "start", "end", "text") == SAME and not problems(records)
        assert more.items() <= records[0].values.items() and not records[0].values.keys() & {"word", "start_time"}


def test_segments_of_recognisers_and_what_cannot_be_used(tmp_path: Path) -> None:
    words = [{"word": "hi", "start": 0.5, "end": 0.25}, {"word": "2014"}, {"word": "you", "start": "a", "end": 1}, 3]
    silence = {"start": 1.5, "end": 2, "text": " "}
    segments = [{"start": 0, "end": 1.5, "text": " hi you", "no_speech_prob": 0.25, "words": words}, silence]
    (path := tmp_path / "r.json").write_text(json.dumps({"text": "hi you", "segments": segments}, indent=1))
    records = read(path, "file", rows="segments")
    assert cells(records, "number", "start", "end", "text", "no_speech_prob") == [("1", "0", "1.5", "hi you", "0.25")]
    assert problems(records) == {26: "line 26: holds a word or segment without text"}
    assert [record.problem for record in read(path, "file")][:4] == [
        "line 4: 'hi': ends at 0.25 s, before it begins at 0.5 s",
        "line 4: '2014': has no times",
        "line 4: 'you': 'a' is no time in seconds",
        "line 4: holds something else than an object with text and times",
    ]
    assert cells(read(path, "no_speech_prob"), "no_speech_prob", "file") == [("0.25", None), (None, None)]  # as written
    path.write_text('{"text": "", "segments": [], "language": "en"}')
    assert read(path, "file", "text") == []  # nothing is said
    assert cells(read(path, "language"), "language") == [("en",)]  # the object is the row


def test_times_are_milliseconds_only_where_they_can_be_nothing_else(tmp_path: Path) -> None:
    """Where a recogniser counts whole seconds, or does not say how long the recording is, they are seconds."""
    words = [{"text": "hi", "start": 1200, "end": 2050}, {"text": "you", "start": 2050, "end": 3210}]
    documents = [
        ({"audio_duration": 4, "words": words}, [("1.2", "2.05"), ("2.05", "3.21")]),
        ({"words": words}, [("1200", "2050"), ("2050", "3210")]),
        ({"audio_duration": 4, "words": [{"text": "hi", "start": 1, "end": 2}]}, [("1", "2")]),
        ({"audio_duration": 4, "words": [{"text": "hi", "start": 100.5, "end": 300.5}]}, [("100.5", "300.5")]),
    ]
    for document, expected in documents:
        (path := tmp_path / "r.json").write_text(json.dumps(document))
        assert cells(read(path, "file", "text"), "start", "end") == expected
    (path := tmp_path / "r.json").write_text(
        json.dumps({"words": [*words, {"text": "x", "start": 9000, "end": 8000}], "audio_duration": 9.5})
    )
    assert problems(read(path, "file")) == {1: "line 1: 'x': ends at 8 s, before it begins at 9 s"}


def test_other_tables_in_json_are_no_transcripts(tmp_path: Path) -> None:
    (path := tmp_path / "r.json").write_text('{"items": [{"text": "a", "start": "2024-01-31"}], "n": 1}')
    assert cells(read(path), "text", "start", "file") == [("a", "2024-01-31", None)]


# All of them


class Spoken(NamedTuple):
    start: int  # milliseconds
    duration: int
    text: str


LETTERS = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z"), exclude_characters="<>&{}\\"), min_size=1)
TEXTS = LETTERS.filter(lambda text: text.strip() == text and "--" not in text and not text.isdecimal())
SPOKEN = st.lists(st.builds(Spoken, st.integers(0, 4 * 10**8), st.integers(0, 10**6), TEXTS), max_size=6)


def clock(milliseconds: int, point: str) -> str:
    seconds, fraction = divmod(milliseconds, 1000)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}{point}{fraction:03}"


def srt(cues: list[Spoken]) -> str:
    times = [f"{clock(c.start, ',')} --> {clock(c.start + c.duration, ',')}" for c in cues]
    return "\n\n".join(f"{n}\n{t}\n{c.text}" for n, (t, c) in enumerate(zip(times, cues, strict=True), 1))


def vtt(cues: list[Spoken]) -> str:
    return (
        "WEBVTT\n\n" + srt(cues).replace(",", ".") if not any("," in c.text for c in cues) else "WEBVTT\n\n" + srt(cues)
    )


def textgrid(cues: list[Spoken], form: str) -> str:
    lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", "0", "9", "<exists>", "1"]
    lines += ['"IntervalTier"', '"t"', "0", "9", str(len(cues))]
    for c in cues:
        text = c.text.replace('"', '""')
        lines += [f"{c.start / 1000!r}", f"{(c.start + c.duration) / 1000!r}", f'"{text}"']
    return "\n".join(f"x = {line}" if form == "long" and n > 2 else line for n, line in enumerate(lines))


def ctm(cues: list[Spoken]) -> str:
    return "".join(f"t 1 {Decimal(c.start) / 1000} {Decimal(c.duration) / 1000} {c.text}\n" for c in cues)


def rttm(cues: list[Spoken]) -> str:
    times = [f"{Decimal(c.start) / 1000} {Decimal(c.duration) / 1000}" for c in cues]
    return "".join(f"LEXEME t 1 {t} {c.text} lex A <NA>\n" for t, c in zip(times, cues, strict=True))


def words(cues: list[Spoken]) -> str:
    return json.dumps(
        {"words": [{"word": c.text, "start": c.start / 1000, "end": (c.start + c.duration) / 1000} for c in cues]}
    )


WRITERS: dict[str, Callable[[list[Spoken]], str]] = {
    "t.srt": srt,
    "t.vtt": vtt,
    "t.TextGrid": lambda cues: textgrid(cues, "short"),
    "u.TextGrid": lambda cues: textgrid(cues, "long"),
    "t.ctm": ctm,
    "t.rttm": rttm,
    "t.json": words,
}


@pytest.mark.parametrize("name", WRITERS)
@settings(max_examples=40)
@given(cues=SPOKEN)
def test_what_is_written_is_read(tmp_path_factory, name: str, cues: list[Spoken]) -> None:
    path = tmp_path_factory.mktemp("t") / name
    path.write_bytes(WRITERS[name](cues).encode())
    records = read(path, "file", "text")
    assert not problems(records)
    found = [
        (Decimal(start or ""), Decimal(end or ""), text) for start, end, text in cells(records, "start", "end", "text")
    ]
    assert found == [(Decimal(c.start) / 1000, Decimal(c.start + c.duration) / 1000, c.text) for c in cues]
    assert all("E" not in f"{start}{end}" for start, end in cells(records, "start", "end"))


@given(st.lists(st.sampled_from(["1", "", "00:00:01,000 --> 00:00:02,000", "a --> b", "text", "NOTE", "WEBVTT", " "])))
def test_no_line_of_subtitles_is_uncounted(tmp_path_factory, lines: list[str]) -> None:
    """Each line with an arrow is one cue, or refused; and whatever has none is told."""
    path = tmp_path_factory.mktemp("t") / "t.srt"
    path.write_bytes("\n".join(lines).encode())
    records = read(path)
    counted = [record.line for record in records]
    assert counted == sorted(set(counted))
    assert {n for n, line in enumerate(lines, 1) if "-->" in line} <= set(counted)
    assert bool(counted) == any(line.strip() for line in lines)


def test_many_files_are_one_table_whose_rows_know_their_recording(tmp_path: Path) -> None:
    for name, text in {"s1/r1": "Hello", "s1/r2": "", "s2/r1": "You"}.items():
        (tmp_path / "subtitles" / name).parent.mkdir(parents=True, exist_ok=True)
        write(tmp_path / f"subtitles/{name}.srt", f"1\n00:00:01,000 --> 00:00:02,500\n{text}\n")
    fields: dict[str, Any] = {"modality": "text", "table": "subtitles/**/*.srt", "column": "text"}
    found = scan(SourceSettings.of(name="s", key=["file", "number"], **fields), tmp_path)
    assert found.rows["key"].to_pylist() == ["s1%2Fr1/1", "s2%2Fr1/1"]
    assert json.loads(found.rows["attributes"][0].as_py()) == {
        "end": "2.5", "file": "s1/r1", "id": "1", "number": "1", "start": "1",
    }  # fmt: skip
    (refused,) = found.quarantine.to_pylist()
    assert refused["message"] == f"{tmp_path}/subtitles/s1/r2.srt: line 2: has no text"
    with pytest.raises(SourceError, match="no column 'tier'; it has file, number, start, end, text, id, speaker"):
        scan(SourceSettings.of(name="s", key="tier", **fields), tmp_path)
    with pytest.raises(SourceError, match="`columns` name those of a table without header"):
        scan(SourceSettings.of(name="s", key="a", columns=["a", "text"], **fields), tmp_path)
