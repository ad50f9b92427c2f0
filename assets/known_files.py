"""Which files of a source are as they were when it was last listed: what lies in them is not listed anew."""

from collections.abc import Collection
from typing import Any, NamedTuple

import pyarrow as pa

from assets.lake import Lake, sql_string
from assets.settings import Project
from assets.source_settings import SourceSettings
from assets.sources.base import SourceError
from assets.unchanged import code, recall, remember, settings_words, state
from training.schema import fingerprint

# What another try may read, though no file has changed.
_PASSING = (
    "stage = 'manifest' AND reason IN ('unreadable', 'changed', 'corrupt') OR stage = 'clean' AND fingerprint IS NULL"
)
_ALL = ""  # stands for all files of a source, where one file does not say what is listed of it


class Known(NamedTuple):
    """A source beside its last listing."""

    inputs: list[Any] | None  # what a listing depends on beside files; null: nobody knows
    files: dict[str, str | None]  # URI -> what is another where the file is; null: only reading it tells
    changed: frozenset[str] | None  # URIs of files that are new, others or gone; null: all is to be listed

    @property
    def anew(self) -> frozenset[str] | None:
        """The files to be listed; null: all."""
        return None if self.changed is None else self.changed & self.files.keys()


def known_files(lake: Lake, project: Project, source: SourceSettings) -> Known:
    made, words = source.make(project.root), settings_words(source, project.limits, project.cleaning)
    try:
        files = None if source.optional and not made.exists() else made.files()
    except SourceError:  # who lists it says so
        files = None
    if words is None or files is None:
        return Known(None, {}, None)
    files, inputs = list(files), [code(), words, str(project.root)]
    facts = {file.uri: _fact([file]) for file in files} if made.by_file(files) else {_ALL: _fact(files)}
    said = recall(project, f"source_{source.name}", inputs)
    if said is None or said["listed"] != _listed(lake, source.name):
        return Known(inputs, facts, None)
    changed = {uri for uri in facts.keys() | said["files"].keys() if facts.get(uri, _ALL) != said["files"].get(uri)}
    changed |= {uri for uri, fact in facts.items() if fact is None} | _passing(lake, source.name)
    # Files that do not say it alone, now or then; or no file is as it was.
    is_whole = (changed and _ALL in facts) or _ALL in changed or facts.keys() <= changed
    return Known(inputs, facts, None if is_whole else frozenset(changed))


def remember_files(lake: Lake, project: Project, source: SourceSettings, known: Known) -> None:
    """To be called when the tables have what was listed."""
    said = {"listed": _listed(lake, source.name), "files": known.files}
    remember(project, f"source_{source.name}", known.inputs, said)


def sharing(lake: Lake, source: str, changed: Collection[str], contents: pa.Table) -> frozenset[str]:
    """The other files with items of the same key and content as those of files that changed: of these one is kept.

    Args:
        changed: URIs.
        contents: `key`, `sha256` and `cut` of what the files that changed have now.
    """
    of_source = f"source = {sql_string(source)}"
    columns = "uri, key, sha256, cut"
    query = f"""
        WITH listed AS (
          SELECT {columns} FROM manifest WHERE {of_source} UNION ALL
          SELECT {columns} FROM quarantine WHERE {of_source} AND stage = 'manifest' AND sha256 IS NOT NULL
        ), touched AS (
          SELECT key, sha256, cut FROM listed SEMI JOIN changed USING (uri) UNION SELECT key, sha256, cut FROM contents
        )
        SELECT DISTINCT uri FROM (FROM listed ANTI JOIN changed USING (uri)) l JOIN touched t
        ON l.sha256 = t.sha256 AND l.key IS NOT DISTINCT FROM t.key AND l.cut IS NOT DISTINCT FROM t.cut
    """
    with lake.connect("manifest quarantine") as connection:
        connection.register("changed", pa.table({"uri": pa.array(sorted(changed), pa.string())}))
        connection.register("contents", contents)
        return frozenset(uri for (uri,) in connection.sql(query).fetchall())


def _fact(files: list[Any]) -> str | None:
    facts = state(files)
    return None if facts is None else fingerprint(facts)


def _listed(lake: Lake, source: str) -> list[Any]:
    """Rows of a source in manifest and quarantine, and what differs where the rows do."""
    of_source = f"source = {sql_string(source)}"
    parts = [
        f"SELECT count(*), bit_xor(hash(m))::VARCHAR FROM manifest m WHERE {of_source}",
        f"SELECT count(*), bit_xor(hash(q))::VARCHAR FROM quarantine q WHERE {of_source} AND stage = 'manifest'",
    ]
    with lake.connect("manifest quarantine") as connection:
        return [value for part in parts for value in connection.sql(part).fetchall()[0]]


def _passing(lake: Lake, source: str) -> set[str]:
    """URIs of which something may be read by another try. Of a file that several sources list one item stands for all
    (`assets.pipeline.scan_sources`)."""
    of_source = f"source = {sql_string(source)}"
    query = f"""
        SELECT uri FROM quarantine WHERE ({_PASSING}) AND {of_source}
        UNION SELECT uri FROM manifest WHERE {of_source} AND uri IN (SELECT uri FROM quarantine WHERE {_PASSING})
    """
    return set(lake.sql(query)["uri"].to_pylist())
