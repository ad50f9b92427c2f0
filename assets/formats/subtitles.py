"""Subtitles: SubRip (.srt) and WebVTT (.vtt, https://www.w3.org/TR/webvtt1), as programs and people write them.

A cue is a line with ``-->``, an identifier in the line before it, and the lines of text behind it, up to a blank line
or to the next cue. Marks of how a text looks (tags, overrides of ASS) are no part of it.
"""

import html
import re
from collections.abc import Iterable, Iterator
from decimal import Decimal

from assets.formats.base import Record, TableFile
from assets.formats.cues import Cue, records

_ARROW = "-->"
_TIME = re.compile(r"(?:(\d{1,9}):)?(\d{1,2}):(\d{1,2}(?:[.,]\d+)?)", re.ASCII)  # hours may be many, or left out
_NO_CUES = re.compile(r"(WEBVTT|NOTE|STYLE|REGION)(\s|$)")  # how blocks of WebVTT begin that hold something else
# Those of HTML that SubRip knows, and those of WebVTT, with classes (<c.yellow>); <3 and <laughs> are text.
_TAG = re.compile(r"</?(?:i|b|u|s|c|v|rt|ruby|lang|font|span|em|strong)\b[^<>]*>|<\d[\d:.]*>|\{\\[^{}]*\}", re.I)
_BREAK = re.compile(r"<br\s*/?>|\\N", re.I)
_VOICE = re.compile(r"<v(?:\.[^\s<>]*)?\s+([^<>]+)>")
_REFERENCE = re.compile(r"&(?:\w+|#\d+|#x[\da-f]+);", re.I)

_Line = tuple[int, str]


def read(table: TableFile) -> Iterator[Record]:
    with table.open_text() as file:
        blocks = _blocks(enumerate(file, 1))
        cues = (cue for block in blocks for cue in _cues(block, table.suffix == ".vtt"))
        yield from records(table, ("id", "speaker"), cues)


def _blocks(lines: Iterable[_Line]) -> Iterator[list[_Line]]:
    """Lines between blank ones."""
    block: list[_Line] = []
    for number, line in lines:
        if text := line.strip():
            block.append((number, text))
        elif block:
            yield block
            block = []
    if block:
        yield block


def _cues(block: list[_Line], is_vtt: bool) -> Iterator[Cue]:
    """Those of a block: one, unless blank lines lack."""
    starts: list[tuple[int, int]] = []  # of each the first line, and that with the times
    for n, (_, text) in enumerate(block):
        if _ARROW in text:
            before = block[n - 1][1] if n else ""
            is_name = not starts and before != "" and not (is_vtt and _NO_CUES.match(before))
            # Where no blank line divides two cues, what is no number is text of the first.
            starts.append((n - (is_name or before.isdecimal()), n))
    stray = block[: starts[0][0]] if starts else block
    if stray and not (is_vtt and _NO_CUES.match(stray[0][1])):
        yield Cue(stray[0][0], problem=f"has no times: a line with {_ARROW} stands before the text of a cue")
    ends = [start for start, _ in starts[1:]] + [len(block)] if starts else []
    for (start, arrow), end in zip(starts, ends, strict=True):
        identifier = block[start][1] if start < arrow else None
        yield _cue(block[arrow], identifier, [text for _, text in block[arrow + 1 : end]])


def _cue(times: _Line, identifier: str | None, lines: list[str]) -> Cue:
    line, text = times
    before, _, after = text.partition(_ARROW)
    try:
        start, end = _time(before.strip()), _time((after.split() or [""])[0])  # settings may follow
    except ValueError as error:
        return Cue(line, problem=str(error))
    if not (plain := _plain("\n".join(lines))):
        return Cue(line, problem="has no text")
    speakers = "; ".join(dict.fromkeys(name.strip() for name in _VOICE.findall("\n".join(lines))))
    return Cue(line, start, end, {"text": plain, "id": identifier, "speaker": html.unescape(speakers) or None})


def _time(text: str) -> Decimal:
    if found := _TIME.fullmatch(text):
        hours, minutes, seconds = int(found[1] or 0), int(found[2]), Decimal(found[3].replace(",", "."))
        if minutes < 60 and seconds < 60:
            return hours * 3600 + minutes * 60 + seconds
    raise ValueError(f"{text[:40]!r} is no time: expected hours, minutes and seconds, as in 00:01:02.500")


def _plain(text: str) -> str:
    bare = _TAG.sub("", _BREAK.sub("\n", text))
    lines = _REFERENCE.sub(lambda found: html.unescape(found[0]), bare).split("\n")
    return "\n".join(filter(None, map(str.strip, lines)))
