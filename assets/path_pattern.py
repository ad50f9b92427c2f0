"""What the path of a file says of it: `{speaker}/{chapter}/{name}` gives each file these three columns."""

import re

_TOKEN = re.compile(r"\{([^{}/]*)\}|(\*\*/?)|(\*)")
_FIELD, _FOLDERS, _ANY = r"([^/]+?)", r"(?:[^/]+/)*", r"[^/]*?"


class PathPattern:
    """A path below the folder, in which `{field}` stands for a part that becomes a column, `*` for any part, and `**/`
    for any folders. The file's suffix may be left out. Each field takes as little as fits, and never a `/`.

    Raises:
        ValueError: it names no field, or one twice, or two of which nobody knows where the first ends.
    """

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self.fields = tuple(match[1] for match in _TOKEN.finditer(pattern) if match[1] is not None)
        rest = _TOKEN.sub("", pattern)
        if not self.fields or "" in self.fields or "{" in rest or "}" in rest:
            raise ValueError(f"path is {pattern!r}, expected fields in braces such as {{label}}/{{name}}")
        if len(set(self.fields)) < len(self.fields):
            raise ValueError(f"path is {pattern!r}: each field once")
        if "}{" in pattern:
            raise ValueError(
                f"path is {pattern!r}: put something between two fields, so that it is clear where one ends"
            )
        expression, end = "", 0
        for match in _TOKEN.finditer(pattern):
            token = _FIELD if match[1] is not None else _FOLDERS if match[2] else _ANY
            expression += re.escape(pattern[end : match.start()]) + token
            end = match.end()
        self._expression = re.compile(expression + re.escape(pattern[end:]) + r"(?:\.[^./]+)?")

    def __str__(self) -> str:
        return self._pattern

    def read(self, path: str) -> dict[str, str] | None:
        """Field -> what stands there; null where the path does not fit."""
        match = self._expression.fullmatch(path)
        return match and dict(zip(self.fields, match.groups(), strict=True))
