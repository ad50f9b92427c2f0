"""Lines of words as NIST's scoring tools and Kaldi read them: words with times (.ctm), and who speaks when (.rttm).

https://github.com/usnistgov/SCTK/blob/master/doc/infmts.htm; RTTM: NIST, The 2009 Rich Transcription Evaluation Plan,
appendix A. The recording is named in each line.
"""

from collections.abc import Iterator, Sequence

from assets.formats.base import Record, TableFile
from assets.formats.cues import Cue, number, records

# The fields of a line; those in `_BESIDE` and `text` may be <NA> or, at the end, left out.
_FIELDS = {
    ".ctm": ("file", "channel", "start", "duration", "text", "confidence", "type", "speaker"),
    ".rttm": ("type", "file", "channel", "start", "duration", "text", "subtype", "speaker", "confidence", "lookahead"),
}
_FEWEST = {".ctm": 5, ".rttm": 8}
_BESIDE = ("channel", "confidence", "type", "speaker")
_NO_STRETCH = "SPKR-INFO"  # a line of RTTM that describes a speaker
_COMMENT, _NOTHING = ";;", "<NA>"


def read(table: TableFile) -> Iterator[Record]:
    with table.open_text() as file:
        lines = ((line, text.split()) for line, text in enumerate(file, 1) if not text.lstrip().startswith(_COMMENT))
        cues = (_cue(table.suffix, line, cells) for line, cells in lines if cells and cells[0] != _NO_STRETCH)
        yield from records(table, _BESIDE, cues)


def _cue(kind: str, line: int, cells: Sequence[str]) -> Cue:
    fields, fewest = _FIELDS[kind], _FEWEST[kind]
    if not fewest <= len(cells) <= len(fields):
        return Cue(line, problem=f"has {len(cells)} words, expected {fewest} to {len(fields)}: {' '.join(fields)}")
    values = {name: None if cell == _NOTHING else cell for name, cell in zip(fields, cells, strict=False)}
    try:
        start, duration = number(values["start"] or _NOTHING), number(values["duration"] or _NOTHING)
    except ValueError as error:
        return Cue(line, problem=str(error))
    kept = {name: values.get(name) for name in ("file", "text", *_BESIDE)}
    return Cue(line, start, start + duration, kept)
