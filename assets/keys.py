"""Keys of one or of several columns."""

from collections.abc import Mapping, Sequence

from assets.names import normalize


def key_of(values: Mapping[str, str | None], columns: Sequence[str]) -> str | None:
    """The key that the columns give; null where one of them holds nothing.

    Several are joined by `/`, as a path is: (`p1`, `v2`) is the key of the file `p1/v2.png`. So that no two keys become
    one, `%` and `/` within a column of several are written %25 and %2F.
    """
    parts = [normalize(values.get(column) or "") for column in columns]
    if len(parts) == 1:
        return parts[0] or None
    return "/".join(map(_escaped, parts)) if parts and all(parts) else None


def _escaped(part: str) -> str:
    return part.replace("%", "%25").replace("/", "%2F")


def sql_key(cells: Sequence[str]) -> str:
    """`key_of` as SQL over the SQL of its cells, each null where it holds nothing."""
    if len(cells) == 1:
        return cells[0]
    return " || '/' || ".join(f"replace(replace({cell}, '%', '%25'), '/', '%2F')" for cell in cells)
