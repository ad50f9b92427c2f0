"""The contract of a join: which items belong together in a sample."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import duckdb

from assets.joins.columns import Columns
from assets.settings import AlignSettings
from assets.source_settings import SourceSettings


class Join(ABC):
    """A kind of join (`align.on`). It reads the tables `items` and `refused_keys` of the connection and makes

    joined(line, link_uri, sample_id, split_key, values, X_item, X_id, X_status for each modality X)
    left_over(item_id, reason, why): the reason of items that no row of `joined` has (a code of `assets.items`), and
      a sentence about it where there is more to say; what it tells of other items does not matter
    broken_links(uri, line, problem)

    `split_key` decides the split where no column does; `joined` may have `split_keys`, a list of more that a row is
    bound by (it is excluded where they ask for different splits), and, where a sample may have several X, `X_more`
    STRUCT(item VARCHAR, id VARCHAR)[]: the further ones after X_item, in order; together at most as many as
    `settings.several` says. Where that names views of X, `X_views` says of which each of them is, VARCHAR[]; `items`
    has the number of each item's (`assets.joins.several.set_views`).

    It adds to the table `findings(code, message)` what a person should know (`assets.findings`), such as keys that
    match nothing, and to `report(name, value)` what the report shows, as JSON.
    """

    def check(self, settings: AlignSettings, sources: Sequence[SourceSettings]) -> None:
        """Raises ValueError where the settings do not fit each other or the sources; asked when the file is read."""
        return

    @abstractmethod
    def join(
        self,
        connection: duckdb.DuckDBPyConnection,
        settings: AlignSettings,
        sources: Sequence[SourceSettings],
        root: Path,
        columns: Columns,
    ) -> Columns:
        """Makes the tables; returns the columns that settings can name, with those that the join adds.

        Raises:
            ValueError: nothing matches, a table cannot be read or lacks a column, or two samples have one id.
        """
