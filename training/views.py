"""The places that several contents of a modality have in a row: numbered, or bound to names, which are views.

`several` of a model says of a modality how many there may be, or the names of its views in order. Of views a row has
any subset; what it lacks leaves its place empty.
"""

from collections.abc import Sequence

Places = int | Sequence[str]
TEXTS = "\n"  # stands between several texts of a row where the language model reads them, as one prompt


def most(places: Places) -> int:
    """How many contents a row may have."""
    return places if isinstance(places, int) else len(places)


def views(places: Places) -> tuple[str, ...]:
    """Their names; none where they are numbered."""
    return () if isinstance(places, int) else tuple(places)


def placed(said: Sequence[str] | None, count: int, places: Places) -> list[int]:
    """The place of each of so many contents of a row.

    Args:
        said: of which view each is.

    Raises:
        ValueError: there are more than there may be, or one is of no view, or of that of another one.
    """
    names = views(places)
    if count > most(places):
        raise ValueError(f"has {count}, and the model takes {most(places) if most(places) > 1 else 'one'}")
    if not names or not count:
        return list(range(count))
    there = f"; there are {', '.join(names)}"
    if said is None or len(said) != count:
        raise ValueError(f"does not say of which view each is{there}")
    for view in said:
        if view not in names:
            raise ValueError(f"has the view {view!r}, which the model does not know{there}")
        if said.count(view) > 1:
            raise ValueError(f"has the view {view!r} more than once")
    return [names.index(view) for view in said]
