"""How a delimited file is written: which delimiter, whether cells are quoted, and what its rows look like."""

import csv
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from io import StringIO

HEAD = 2**16  # characters that delimiter and looks are learned from
_LINES = 200  # of them, that a delimiter is judged by
_DELIMITERS = ",;\t|"
# Longer words are no names; a space behind one is a slip, one before it is how a text goes on.
_LOOKS = re.compile(r"[+-]?\d+([.,]\d+)?\s*"), re.compile(r'[^\s"]{1,64}\s*')
_SHARE = 0.9  # of the cells of a column that have to have a look in common
_FEWEST = 2  # cells that a look is learned from


def lines_of(text: str) -> list[str]:
    """With their ends, as a file gives them: \\n, \\r or both."""
    return list(StringIO(text, newline=""))


def split(line: str, delimiter: str) -> list[str]:
    """The cells of a line by itself, as far as it has some."""
    try:
        return next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error:
        return []


def find_delimiter(lines: Sequence[str], columns: Sequence[str], required: Iterable[str], default: str) -> str:
    """What gives most lines as many cells as the header has, and a header with the columns that are asked for.

    Args:
        columns: names of a table without header.
        default: what is taken where nothing divides the header.
    """

    def worth(delimiter: str) -> tuple[bool, float, int]:
        rows = [cells for line in lines[:_LINES] if (cells := split(line, delimiter))]
        header = columns or [name.strip() for name in rows[0]]
        share = sum(len(cells) == len(header) for cells in rows) / len(rows)
        return set(required) <= set(header), share, len(header)

    first = next((line for line in lines if line.strip()), "")
    dividing = [delimiter for delimiter in _DELIMITERS if len(split(first, delimiter)) > 1]
    return default if default == "\t" and default in dividing else max(dividing, key=worth, default=default)


def _shape(cell: str) -> str:
    """What signs a cell has in which order: a_0 of item_17."""
    return re.sub(r"[^\W\d_]+", "a", re.sub(r"\d+", "0", cell.rstrip()))


class Looks:
    """What tells a row from a piece of a text: columns that hold numbers, or words without a space, throughout."""

    def __init__(self, lines: Iterable[str], delimiter: str, width: int) -> None:
        self.width, self._delimiter = width, delimiter
        rows = [cells for line in lines if len(cells := split(line, delimiter)) == width and '"' not in "".join(cells)]
        self._tests = [self._test([row[n] for row in rows if row[n]]) for n in range(width)]

        shapes = [Counter(_shape(row[n]) for row in rows if row[n]).most_common(1) for n in range(width)]
        common = [top[0][0] for top in shapes if top and top[0][1] >= _SHARE * len(rows)]
        self._shapes = {shape for shape in common if "0" in shape}  # those with digits, which tell names from words

    @staticmethod
    def _test(cells: Sequence[str]) -> re.Pattern[str] | None:
        for pattern in _LOOKS:
            if len(cells) >= _FEWEST and sum(map(bool, map(pattern.fullmatch, cells))) >= _SHARE * len(cells):
                return pattern
        return None

    def fit(self, cells: Sequence[str]) -> bool:
        """Whether nothing in the cells looks unlike their columns; they may be too few."""
        return all(not test or not cell or test.fullmatch(cell) for test, cell in zip(self._tests, cells, strict=False))

    def may_go_on(self, cells: Sequence[str]) -> bool:
        """Whether a line break in a cell may have cut this row: it lacks cells, or ends with one of a text."""
        return len(cells) < self.width or self._tests[-1] is None

    def is_row(self, cells: Sequence[str]) -> bool:
        """Whether these may be the cells of a whole row, as far as columns have a look."""
        return len(cells) == self.width and self.is_start(cells)

    def is_start(self, cells: Sequence[str]) -> bool:
        """Whether these may be the first cells of a row: something stands in the first column that has a look."""
        stands = next((cell != "" for test, cell in zip(self._tests, cells, strict=False) if test), False)
        return stands and self.fit(cells)

    def is_surely_row(self, cells: Sequence[str]) -> bool:
        """Whether hardly a text has such cells: two columns have their look, or one has digits as all its cells do."""
        looks = sum(bool(test and cell) for test, cell in zip(self._tests, cells, strict=False))
        return self.is_row(cells) and (looks > 1 or self._has_shape(cells))

    def _has_shape(self, cells: Sequence[str]) -> bool:
        return not self._shapes.isdisjoint(map(_shape, cells))

    def are_rows(self, lines: Sequence[str]) -> bool:
        """Whether the lines that a quoted cell spans look like rows of their own, which it has swallowed."""
        literal = self._literal(lines)
        first, *inner, last = [self.is_row(c) and (self._has_shape(c) or not self._shapes) for c in literal]
        return (first and last and 2 * sum(inner) >= len(inner)) or (bool(inner) and all(inner))

    def start_in(self, lines: Sequence[str]) -> bool:
        """Whether a row seems to start in one of the lines."""
        return any(map(self.is_start, self._literal(lines)))

    def _literal(self, lines: Sequence[str]) -> list[list[str]]:
        """The cells that the lines have where a quote is a letter."""
        return [line.rstrip("\r\n").split(self._delimiter) for line in lines if line.strip()]
