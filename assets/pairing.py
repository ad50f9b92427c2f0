"""Free pairing: which contents of the training rows may stand in for one another, drawn anew in each epoch.

`samples` says it by a pool for each row and modality; what is drawn from them in an epoch says `training.pairing`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import duckdb

from assets.findings import Finding
from assets.lake import sql_string
from training.schema import MODALITIES
from training.validation import FORBID_EXTRA, Names, check

if TYPE_CHECKING:  # it needs the settings of `align`, which have these
    from assets.joins.columns import Columns


@dataclass(frozen=True, kw_only=True)
class PairingSettings:
    """What stands together in a training row: what its sample says, or other training rows' items that are equal in
    what matters.

    ``by`` names for a source the columns in which such items are equal: of its own table, else any that `align` can
    name, such as the label. They have to say all that the label depends on, or it will not be true of what is drawn.
    Items of rows of validation and test are never drawn, and those rows stay as they are. An item without a value
    keeps its place.
    """

    __pydantic_config__ = FORBID_EXTRA
    by: dict[str, Names]
    draw: Literal["per_epoch", "once"] = "per_epoch"  # once: as the samples say, in all epochs

    def __post_init__(self) -> None:
        check(len(self.by) > 0, "by", self.by, "columns of at least one source, {SOURCE: COLUMN}")


def pool_sql(settings: PairingSettings | None, modality: str, columns: "Columns") -> str:
    """SQL, over the rows that `Columns.sql` reads, for the pool that a row's content of a modality belongs to: source
    and values as a JSON list; null: to none.

    Raises:
        ValueError: there is no such column.
    """
    by = settings.by if settings is not None and settings.draw == "per_epoch" else {}
    cases = []
    for source, names in by.items():
        if columns.settings[source].modality == modality:
            values = [_value(source, name, columns) for name in names]
            known = " AND ".join(f"{value} IS NOT NULL" for value in values)
            pool = f"to_json([{', '.join([sql_string(source), *values])}])::VARCHAR"
            cases.append(f"WHEN {sql_string(source)} THEN CASE WHEN {known} THEN {pool} END")
    return f"CASE {modality}.source {' '.join(cases)} END" if cases else "NULL::VARCHAR"


def _value(source: str, name: str, columns: "Columns") -> str:
    """A column of the source itself, where it has one of that name."""
    try:
        return columns.sql(f"{source}.{name}" if name in columns.sources.get(source, ()) else name)
    except ValueError as error:
        raise ValueError(f"align.pairing.by.{source}: {str(error).removeprefix('align: ')}") from None


def pairing_findings(connection: duckdb.DuckDBPyConnection, settings: PairingSettings | None) -> list[Finding]:
    """Sources of which no content has another that could stand in for it; from the table `samples`."""
    if settings is None or settings.draw == "once":
        return []
    drawn = {source for m in MODALITIES for source in _drawn(connection, m)}
    return [_alone(source, names) for source, names in settings.by.items() if source not in drawn]


def _drawn(connection: duckdb.DuckDBPyConnection, modality: str) -> set[str]:
    """The sources of the pools that hold several contents."""
    pool = f"{modality}_pool"
    rows = connection.sql(
        f"SELECT DISTINCT json_extract_string(pool, '$[0]') FROM (SELECT {pool} AS pool FROM samples "
        f"WHERE {pool} IS NOT NULL GROUP BY 1 HAVING count(DISTINCT {modality}_id) > 1)"
    ).fetchall()
    return {source for (source,) in rows}


def _alone(source: str, names: Sequence[str]) -> Finding:
    said = f"no two contents of training rows are equal in {', '.join(names)}, so none is drawn anew"
    return Finding("pairing", f"align.pairing.by.{source}: {said}: name what makes them equal, or leave it out")
