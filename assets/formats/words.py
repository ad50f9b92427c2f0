"""Lines of words, as Kaldi and LibriSpeech have them: blanks divide the columns; the last one takes the rest."""

from collections.abc import Iterator

from assets.formats.base import Record, TableFile, unstorable
from assets.sources.base import SourceError


def read(table: TableFile) -> Iterator[Record]:
    if not table.columns:
        raise SourceError(f"{table}: no header can be told from words: name the `columns` of the table")
    names = table.check(table.columns)
    with table.open_text() as file:
        for line, text in enumerate(file, 1):
            cells = text.strip().split(None, len(names) - 1)
            if found := unstorable(cells):
                yield table.broken(line, f"line {line} holds {found}")
            elif cells:
                cells += [""] * (len(names) - len(cells))  # a recording in which nothing is said
                yield table.record(line, dict(zip(names, cells, strict=True)))
