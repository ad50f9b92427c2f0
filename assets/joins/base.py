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
      and, where a sample may have several X, X_more STRUCT(item VARCHAR, id VARCHAR)[]: the further ones after X_item,
      in order; together at most as many as `settings.several` says
    candidates(item_id): items that a link names, taken or not
    broken_links(uri, line, problem)

    and adds to the table `findings(code, message)` what a person should know (`assets.findings`), such as keys that
    match nothing.
    """

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
