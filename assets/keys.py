"""Keys of one or of several columns."""

from collections.abc import Mapping, Sequence


def key_of(values: Mapping[str, str | None], columns: Sequence[str]) -> str | None:
    """The key that the columns give; null where one of them holds nothing.

    Several are joined by `/`, as a path is: (`p1`, `v2`) is the key of the file `p1/v2.png`. So that no two keys become
    one, `%` and `/` within a column of several are written %25 and %2F.
    """
    parts = [values.get(column) for column in columns]
    if not parts or any(part is None or not part.strip() for part in parts):
        return None
    given = [part for part in parts if part is not None]
    return given[0] if len(given) == 1 else "/".join(_escaped(part.strip()) for part in given)


def _escaped(part: str) -> str:
    return part.replace("%", "%25").replace("/", "%2F")


def sql_key(cells: Sequence[str]) -> str:
    """`key_of` as SQL over the SQL of its cells, each null where it holds nothing."""
    if len(cells) == 1:
        return cells[0]
    return " || '/' || ".join(f"replace(replace(trim({cell}), '%', '%25'), '/', '%2F')" for cell in cells)
