"""Several items of a modality in a sample, each of a view with a name: `align: {several: {image: [front, left]}}`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from training.validation import FORBID_EXTRA, Names, check, validated

SOURCE = "source"


@dataclass(frozen=True, kw_only=True)
class Views:
    """Places of a sample that have names: what a sample lacks of them stays empty, and moves no other up."""

    __pydantic_config__ = FORBID_EXTRA
    views: Names = ()
    # What says of which view an item is: `source`, the name of its source, or, where a link table names several of a
    # source, that of the column that names it; else a column of its source
    by: str = SOURCE

    def __post_init__(self) -> None:
        object.__setattr__(self, "views", tuple(self.views))
        check(len(self.views) >= 2, "views", list(self.views), "two names or more")
        check(len(set(self.views)) == len(self.views), "views", list(self.views), "each name once")
        odd = [name for name in self.views if not name or set(name).intersection(";=,") or name[:1] in "[{"]
        check(not odd, "views", odd, "names without ; = and , that begin with no bracket")

    def check_sources(self, name: str, sources: Sequence[str]) -> None:
        """Raises ValueError where the sources of the modality are the views, and some are not."""
        for names, others, what in ((sources, self.views, "views"), (self.views, sources, "sources of them")):
            for one in names:
                expected = f"one of the {what} ({', '.join(others)}); or say by which column items have their view (by)"
                check(one in others, name, one, expected)


Places = int | Views  # how many items of a modality a sample may have, or the views that it may have one of each of


def read_places(name: str, value: Any) -> Places:
    """As the project file says it under that name: a number, a list of views, or `{views: [...], by: COLUMN}`. Raises
    ValueError."""
    if isinstance(value, Views):
        return value
    if isinstance(value, Mapping | list | tuple):
        try:
            views: Views = validated(Views, value if isinstance(value, Mapping) else {"views": list(value)})
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        return views
    is_number = isinstance(value, int) and not isinstance(value, bool) and value >= 2
    check(is_number, name, value, "2 or more: how many of them a sample may have; or a list of views")
    return int(value)
