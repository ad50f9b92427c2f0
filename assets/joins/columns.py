"""The columns that settings can name, as SQL over the rows of a join."""

from collections.abc import Sequence
from dataclasses import dataclass

import duckdb

from assets.lake import sql_string
from assets.source_settings import SourceSettings
from assets.splits import pointer
from training.schema import MODALITIES


def cell(json_column: str, column: str) -> str:
    """SQL for the value of a column kept in a JSON object; null where it is empty."""
    return f"nullif(json_extract_string({json_column}, {sql_string(pointer(column))}), '')"


@dataclass(frozen=True)
class Columns:
    """The columns that settings can name: those of the link table, and those of each source's items."""

    link: frozenset[str]
    sources: dict[str, frozenset[str]]  # source -> columns
    settings: dict[str, SourceSettings]
    hidden: frozenset[str]  # columns with keys, ids or texts, which are no attributes of a sample
    empty: frozenset[str] = frozenset()  # sources without an item, whose columns are not known

    @classmethod
    def of(cls, connection: duckdb.DuckDBPyConnection, sources: Sequence[SourceSettings]) -> "Columns":
        pairs = connection.sql("SELECT DISTINCT source, unnest(json_keys(attributes)) FROM items").fetchall()
        # A key of one column is no attribute: it is what items have as their key.
        columns = {s.name: set(s.keys) if len(s.keys) == 1 else set() for s in sources}
        for source, column in pairs:
            columns[source].add(column)
        texts = frozenset(s.column for s in sources if s.column)
        listed = {source for (source,) in connection.sql("SELECT DISTINCT source FROM items").fetchall()}
        named = {s: frozenset(c) for s, c in columns.items()}
        return cls(frozenset(), named, {s.name: s for s in sources}, texts, frozenset(named.keys() - listed))

    def sql(self, name: str) -> str:
        """The column as SQL over `judged` joined to its items (`items` under the name of each modality).

        Raises:
            ValueError: there is no such column, or several tables have it.
        """
        if name in self.link:
            return cell("values", name)
        source, column = name.partition(".")[0], self.bare(name)
        having = [source] if column != name else [s for s, columns in self.sources.items() if name in columns]
        if not having and name in [f"{m}_id" for m in MODALITIES]:
            return name  # the content
        if not having:
            if self.empty:
                empty = ", ".join(sorted(self.empty))
                raise ValueError(f"align: column {name!r} is in no row that can be used, and of {empty} none can")
            known = [*sorted(self.link), *(f"{s}.{c}" for s, names in self.sources.items() for c in sorted(names))]
            raise ValueError(f"align: no table has a column {name!r}; there are {', '.join(known) or 'none'}")
        modalities = {self.settings[s].modality for s in having}
        choices = ", ".join(f"{s}.{name}" for s in having)
        if len(modalities) > 1 and (len({self.settings[s].rows[0] for s in having}) > 1 or self.link):
            raise ValueError(f"align: column {name!r} is in several tables: write one of {choices}")
        values = ", ".join(self._of_items(m, having, column) for m in sorted(modalities))
        if len({self.settings[s].keys for s in having}) == 1:
            return f"coalesce({values})"
        # One table that several sources read gives all of them the same row, unless their keys differ.
        several = f"align: column {name!r} holds different values in rows that are joined: write one of {choices}"
        is_one = f"len(list_distinct([{values}])) < 2"
        return f"CASE WHEN {is_one} THEN coalesce({values}) ELSE error({sql_string(several)}) END"

    def beside(self, name: str) -> list[str]:
        """Columns of the same bare name in other tables, which `sql` does not read for this one."""
        bare, own = self.bare(name), name.partition(".")[0]
        if name not in self.link and bare == name:
            return []
        chosen = self.settings.get(own) if name not in self.link else None
        others = [s for s, names in self.sources.items() if bare in names and s != (chosen.name if chosen else "")]
        row = chosen.rows if chosen else None
        return [f"{s}.{bare}" for s in others if self.settings[s].rows != row]

    def bare(self, name: str) -> str:
        """The column's name without that of its source."""
        source, _, column = name.partition(".")
        return column if name not in self.link and column in self.sources.get(source, ()) else name

    def _of_items(self, modality: str, having: Sequence[str], column: str) -> str:
        alias = modality
        named = [self.settings[s] for s in having if self.settings[s].modality == modality]
        values = {s.name: f"{alias}.key" if s.keys == (column,) else cell(f"{alias}.attributes", column) for s in named}
        cases = " ".join(f"WHEN {sql_string(s)} THEN {value}" for s, value in values.items())
        return f"CASE {alias}.source {cases} END"
