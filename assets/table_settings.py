"""How the tables that people bring are written."""

from dataclasses import dataclass

from assets.remote_settings import RemoteSettings
from training.validation import Strings, check

NO_QUOTE, WHITESPACE = "none", "whitespace"


def check_encoding(encoding: str) -> None:
    try:
        b" ".decode(encoding)
    except UnicodeError:
        pass  # one whose characters have several bytes
    except LookupError:  # or a codec of Python's that is not for text
        check(False, "encoding", encoding, "one that Python knows, such as utf-8, gbk or latin-1")


@dataclass(frozen=True, kw_only=True)
class TableSettings(RemoteSettings):
    """What the name of a table does not tell; delimiter and quote, which are found, of CSV and TSV alone."""

    encoding: str = "utf-8"  # UTF-16 and UTF-32 are seen by their byte order mark
    # between cells; found: , ; | or tab. whitespace: blanks divide words, and the last column takes the rest of a line
    delimiter: str | None = None
    # around cells that hold delimiters or line breaks, which repeat it where it is a letter; none: it is a letter
    # everywhere. Found: " where cells are quoted with it
    quote: str | None = None
    rows: str | None = None  # of JSON: the key of the list that holds the rows, where several hold objects
    missing: Strings = ()  # cells that mean: no value, such as NA or -999; an empty one always does

    def __post_init__(self) -> None:
        super().__post_init__()
        check_encoding(self.encoding)
        is_one = self.delimiter in (None, WHITESPACE) or (
            len(self.delimiter or "") == 1 and self.delimiter not in ("\r", "\n", '"', "'")
        )
        check(is_one, "delimiter", self.delimiter, f'one character, such as ; or "\\t", or {WHITESPACE}')
        is_one = self.quote in (None, NO_QUOTE) or (len(self.quote or "") == 1 and self.quote not in ("\r", "\n"))
        check(is_one, "quote", self.quote, f"one character, or {NO_QUOTE} where quotes are letters")
        check(self.quote is None or self.quote != self.delimiter, "quote", self.quote, "another than the delimiter")
