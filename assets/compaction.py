"""Few large files in the place of many small ones, while others read and write."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pyarrow as pa
from deltalake.exceptions import CommitFailedError
from filelock import FileLock, Timeout

from assets.lake import KEPT_FOR_EVER, Lake, writer_properties

MOST_FILES = 64  # a table of more is compacted by the step that has written it


def compact(lake: Lake, name: str, above: int = 0) -> bool:
    """Makes few files of the table's; whether it was done. Readers see the same rows, and whoever reads the old files
    goes on: they stay where they are until `Lake.vacuum`, or a week.

    Args:
        above: only a table of more files.
    """
    try:
        with _alone(lake):
            return _compact(lake, name, above)
    except (Timeout, CommitFailedError):  # others compact, or have replaced rows: whoever writes next tries again
        return False


def _alone(lake: Lake) -> AbstractContextManager[Any]:
    """Two that compact one table at once would leave its rows twice: delta-rs 1.6 takes that for no conflict. On an
    object store nothing but the project's lock keeps them apart, and what is twice is read once."""
    if "://" in lake.uri or not Path(lake.uri).is_dir():
        return nullcontext()
    return FileLock(Path(lake.uri) / ".compacting", timeout=0)


def _compact(lake: Lake, name: str, above: int) -> bool:
    table = lake.open(name)
    if table is None or len(sizes := table.get_add_actions(flatten=True)["size_bytes"].to_pylist()) <= above:
        return False
    row_bytes = sum(sizes) // max(1, table.count())
    columns = pa.schema(table.schema().to_arrow())
    # One file after the other, since each that is written is held.
    table.optimize.compact(max_concurrent_tasks=1, writer_properties=writer_properties(name, columns, row_bytes))
    if name not in KEPT_FOR_EVER:
        table.vacuum(dry_run=False)  # what has been in no version for a week
    return True
