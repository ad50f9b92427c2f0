"""What every kind of source keeps to, whatever its kind: those of the catalogue, and one that a user brings."""

import csv
import hashlib
import io
import json
import os
import shutil
import sqlite3
import sys
import tarfile
import textwrap
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from assets import featurizing, pipeline
from assets.catalog import ENGINES, SOURCES
from assets.contents import attach_data
from assets.scan import scan
from assets.source_settings import SourceSettings
from orchestration.automation import signature
from orchestration.inspection import check
from orchestration.project import ProjectError, load

CONTENTS = {f"{n}.bin": bytes([n]) * (n * 1000 + 1) for n in range(5)} | {"large.bin": os.urandom(3_000_000)}
SQLITE = textwrap.dedent(
    '''
    """A source that a user brings: the rows of a SQLite table `media` (name, content)."""

    import sqlite3
    from dataclasses import dataclass

    from assets.sources.base import Entry, Source


    class SqliteSource(Source):
        @dataclass(frozen=True)
        class Options:
            database: str = "media.db"

        def list(self):
            for name, size in self._rows("SELECT name, length(content) FROM media ORDER BY name"):
                entry = Entry(name.split(".")[0], self.options.database, name, size=size)
                yield entry.refuse("bad_name", "it has no name") if name == ".bin" else entry

        def open(self, entry):
            yield from (content for content, in self._rows("SELECT content FROM media WHERE name = ?", entry.member))

        def _rows(self, query, *values):
            with sqlite3.connect(self.root / self.options.database) as connection:
                return connection.execute(query, values).fetchall()
    '''
)


class Silo(NamedTuple):
    settings: SourceSettings
    change: Callable[[], object]  # changes one item


def write_table(path: Path, *more: str) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["file", "note"], *([name, f"Note {name}."] for name in [*CONTENTS, *more])])
    return path


def folder(root: Path) -> Silo:
    (root / "media").mkdir()
    for name, content in CONTENTS.items():
        (root / "media" / name).write_bytes(content)
    write_table(root / "media.csv", "gone.bin", "../outside.bin")
    settings = SourceSettings.of(name="s", modality="image", files="media", table="media.csv", key="file")
    return Silo(settings, lambda: (root / "media" / "2.bin").write_bytes(b"other"))


def tar(root: Path) -> Silo:
    def write(contents: dict[str, bytes]) -> None:
        with tarfile.open(root / "media.tar", "w") as archive:
            for name, content in contents.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))

    write(CONTENTS | {"../outside.bin": b"x"})
    return Silo(SourceSettings.of(name="s", modality="image", files="media.tar"), lambda: write({"a.bin": b"a"}))


def packed(root: Path) -> Silo:
    def write(contents: dict[str, bytes]) -> None:
        with zipfile.ZipFile(root / "media.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in contents.items():
                archive.writestr(name, content)

    write(CONTENTS)
    return Silo(SourceSettings.of(name="s", modality="image", files="media.zip"), lambda: write({"a.bin": b"a"}))


def remote(root: Path) -> Silo:
    memory = fsspec.filesystem("memory")
    for name, content in CONTENTS.items():
        memory.pipe_file(f"/{root.name}/media/{name}", content)
    settings = SourceSettings.of(name="s", modality="image", files=f"memory://{root.name}/media")
    return Silo(settings, lambda: memory.pipe_file(f"/{root.name}/media/2.bin", b"other"))


def table(root: Path) -> Silo:
    path = write_table(root / "media.csv", "")
    settings = SourceSettings.of(name="s", modality="text", table="media.csv", key="file", column="note")
    return Silo(settings, lambda: write_table(path, "more.bin"))


def embedded(root: Path) -> Silo:
    """Two files of a table, in several row groups, with a row that holds nothing and one with nothing in it."""

    def write(contents: dict[str, bytes]) -> None:
        cells = [{"bytes": content, "path": name} for name, content in contents.items()]
        rows = pa.table({"key": [*contents, "no", "void"], "media": [*cells, None, {"bytes": b"", "path": "void.bin"}]})
        for number, part in enumerate((rows[:3], rows[3:])):
            pq.write_table(part, root / f"media-{number}.parquet", row_group_size=2)

    write(CONTENTS)
    settings = SourceSettings.of(name="s", modality="image", table="media-*.parquet", key="key", column="media")
    return Silo(settings, lambda: write({**CONTENTS, "2.bin": b"other"}))


def vectors(root: Path, suffix: str = "parquet") -> Silo:
    """As many, in two files, with a row that holds nothing and one with nothing in it."""

    def write(first: float) -> None:
        cells = [[[first + n, 1.5]] * (n + 1) for n in range(6)]
        rows = pa.table({"key": [*CONTENTS, "no", "void"], "list": [*cells, None, []]})
        for number, part in enumerate((rows[:3], rows[3:])):
            path = root / f"vectors-{number}.{suffix}"
            if suffix == "parquet":
                pq.write_table(part, path, row_group_size=2)
            else:
                path.write_text("".join(json.dumps(row) + "\n" for row in part.to_pylist()))

    write(0)
    settings = SourceSettings.of(
        name="s", modality="text", kind="vectors", table=f"vectors-*.{suffix}", key="key", column="list"
    )
    return Silo(settings, lambda: write(1))


def webdataset(root: Path) -> Silo:
    """Two shards in which samples have one name, with one that lacks its medium and one of a broken label."""

    def write(contents: dict[str, bytes]) -> None:
        for number in range(2):
            with tarfile.open(root / f"shard-{number}.tar", "w") as archive:
                members = {f"{n // 2}.bin": content for n, content in enumerate(contents.values()) if n % 2 == number}
                for name, content in {"no.cls": b"1", "odd.bin": b"x", "odd.json": b"{", **members}.items():
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))

    write(CONTENTS)
    settings = SourceSettings.of(name="s", modality="image", kind="webdataset", files="shard-*.tar", member="bin")
    return Silo(settings, lambda: write({**CONTENTS, "2.bin": b"other"}))


def huggingface(root: Path) -> Silo:
    """Two splits as `save_to_disk` writes them, with a row that holds nothing and one with nothing in it."""
    features = datasets.Features({"media": datasets.Image(), "label": datasets.ClassLabel(names=["no", "yes"])})

    def write(contents: dict[str, bytes]) -> None:
        cells = [{"bytes": content, "path": name} for name, content in contents.items()]
        splits = {"train": [*cells[:3], None], "test": [*cells[3:], {"bytes": b"", "path": "void.bin"}]}
        made = {
            name: datasets.Dataset.from_dict({"media": rows, "label": [0] * len(rows)}, features=features)
            for name, rows in splits.items()
        }
        datasets.DatasetDict(made).save_to_disk(root / "saved")

    write(CONTENTS)
    settings = SourceSettings.of(name="s", modality="image", kind="huggingface", dataset="saved", column="media")
    return Silo(settings, lambda: write({**CONTENTS, "2.bin": b"other"}))


def sql(root: Path) -> Silo:
    """A query, with a row that holds nothing, one with nothing in it, and one that has the name of another."""
    with sqlite3.connect(root / "media.db") as connection:
        connection.execute("CREATE TABLE media (name, content)")
        extra = [("no", None), ("void", b""), ("0.bin", b"again")]
        connection.executemany("INSERT INTO media VALUES (?, ?)", [*CONTENTS.items(), *extra])

    def change() -> None:
        with sqlite3.connect(root / "media.db") as connection:
            connection.execute("UPDATE media SET content = x'AA' WHERE name = '0.bin'")

    where = {"url": "sqlite:///media.db", "query": "SELECT * FROM media;", "key": "name", "column": "content"}
    return Silo(SourceSettings.of(name="s", modality="image", kind="sql", **where), change)


def database(root: Path) -> Silo:
    with sqlite3.connect(root / "media.db") as connection:
        connection.execute("CREATE TABLE media (name, content)")
        connection.executemany("INSERT INTO media VALUES (?, ?)", [*CONTENTS.items(), (".bin", b"x"), ("no.bin", b"")])
    (root / "family_test_source.py").write_text(SQLITE)

    def change() -> None:
        with sqlite3.connect(root / "media.db") as connection:
            connection.execute("UPDATE media SET content = 'other' WHERE name = '2.bin'")

    return Silo(SourceSettings.of(name="s", modality="image", kind="family_test_source:SqliteSource"), change)


SILOS = {"files": [folder, tar, packed, remote], "table": [table], "embedded": [embedded]}
SILOS |= {"webdataset": [webdataset], "huggingface": [huggingface], "sql": [sql]}
SILOS |= {"vectors": [vectors, partial(vectors, suffix="jsonl")]}
SILOS |= {"family_test_source:SqliteSource": [database]}


@pytest.fixture(params=[make for makes in SILOS.values() for make in makes])
def silo(request, tmp_path, monkeypatch) -> Silo:
    monkeypatch.syspath_prepend(tmp_path)
    return request.param(tmp_path)


def test_every_kind_of_the_catalogue_is_tried():
    assert {kind for kind in SILOS if ":" not in kind} == set(SOURCES.names())


def test_listing_is_the_same_each_time(silo, tmp_path):
    first, second = ([repr(entry) for entry in silo.settings.make(tmp_path).list()] for _ in range(2))
    assert len(first) >= len(CONTENTS) and first == second


def test_an_item_opens_to_the_bytes_that_were_listed(silo, tmp_path):
    listed = scan(silo.settings, tmp_path)
    assert listed.rows.num_rows >= len(CONTENTS)
    assert listed.seen == listed.rows.num_rows + listed.quarantine.num_rows
    source = silo.settings.make(tmp_path)
    usable = {(e.uri, e.member, e.row): e for e in source.list() if e.reason is None}
    for row in listed.rows.to_pylist():
        content = b"".join(source.open(usable[row["uri"], row["member"], row["row"]]))
        assert (len(content), hashlib.sha256(content).hexdigest()) == (row["size"], row["sha256"])
    batch = attach_data(listed.rows, {"s": source})
    assert batch["data_error"].null_count == listed.rows.num_rows
    if silo.settings.modality != "text":
        assert sorted(batch["data"].to_pylist()) == sorted(CONTENTS.values())


def test_what_is_refused_says_where_and_why(silo, tmp_path):
    for entry in silo.settings.make(tmp_path).list():
        if entry.reason is not None:
            assert entry.reason.isidentifier() and entry.uri in entry.message


def test_several_threads_read_one_object(silo, tmp_path):
    source = silo.settings.make(tmp_path)
    entries = [entry for entry in source.list() if entry.reason is None] * 5
    with ThreadPoolExecutor(8) as pool:
        contents = list(pool.map(lambda entry: b"".join(source.open(entry)), entries))
    assert contents == [b"".join(source.open(entry)) for entry in entries]


def test_the_signature_changes_when_something_does_and_only_then(silo, tmp_path):
    before = silo.settings.make(tmp_path).signature()
    (tmp_path / "beside.txt").write_text("no part of it")
    assert silo.settings.make(tmp_path).signature() == before
    silo.change()
    assert silo.settings.make(tmp_path).signature() != before


def test_it_is_read_in_another_process(silo, tmp_path):
    if "memory:" in str(silo.settings.files):
        pytest.skip("the memory of this process is not another's")
    source = silo.settings.make(tmp_path)
    listed = scan(silo.settings, tmp_path).rows.combine_chunks().to_batches()[0]
    expected = attach_data(listed, {"s": source})  # archives are open now, and stay behind
    engine = ENGINES.make(ENGINES.choose({"kind": "processes", "workers": 1}))
    (elsewhere,) = engine.map(partial(attach_data, sources={"s": source}), [listed])
    assert elsewhere.equals(expected) and elsewhere["data"].null_count == 0


def test_optional_and_strict_hold_for_every_kind(silo, tmp_path):
    refused = [row["message"] for row in scan(silo.settings, tmp_path).quarantine.to_pylist()]
    strict = replace(silo.settings, strict=True)
    if refused and silo.settings.modality != "text":
        with pytest.raises(ValueError, match="is strict and"):
            scan(strict, tmp_path)
    else:
        assert scan(strict, tmp_path).rows.num_rows >= len(CONTENTS)


@pytest.fixture
def pictures(tiny, monkeypatch) -> Path:
    """The small project with its photos in a database, read by a source of the user's."""
    folder = tiny.parent
    with sqlite3.connect(folder / "media.db") as connection:
        connection.execute("CREATE TABLE media (name, content)")
        photos = [(path.name, path.read_bytes()) for path in (folder / "photos").iterdir()]
        connection.executemany("INSERT INTO media VALUES (?, ?)", photos)
    shutil.rmtree(folder / "photos")
    (folder / "family_test_pictures.py").write_text(SQLITE)
    monkeypatch.delitem(sys.modules, "family_test_pictures", raising=False)  # of another test's folder
    monkeypatch.syspath_prepend(folder)
    theirs = 'kind: "family_test_pictures:SqliteSource", database: media.db'
    tiny.write_text(tiny.read_text().replace("files: photos}", theirs + "}"))
    return tiny


def run(path: Path) -> dict[str, int]:
    project = load(path)
    lake = pipeline.open_lake(project)
    pipeline.write_manifest(lake, project)
    processed = {m: featurizing.process_modality(lake, project, m)["processed"] for m in project.modalities}
    pipeline.write_samples(lake, project)
    return processed


def test_a_source_of_the_user_s_own_goes_through_check_run_and_sensor(pictures):
    checked = check(load(pictures))
    photos = checked.sources["photos"]
    assert (photos.seen, photos.listed, photos.refused) == (48, 48, 0)
    assert checked.problem is None and len(checked.unreadable) == 1
    assert run(pictures) == {"text": 60, "image": 48, "speech": 47}
    lake = pipeline.open_lake(load(pictures))
    present = lake.sql("SELECT count(*) AS n FROM samples WHERE image_status = 'present'")["n"].to_pylist()
    assert present == [47]
    before = signature(load(pictures))
    assert run(pictures) == {"text": 0, "image": 0, "speech": 0} and signature(load(pictures)) == before
    with sqlite3.connect(pictures.parent / "media.db") as connection:
        connection.execute("DELETE FROM media WHERE name = 'q00.png'")
    assert signature(load(pictures)) != before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("database:", "databse:"), ["sources.0.databse", "did you mean database?"]),
        (("database: media.db", "database: [1]"), ["sources.0.database", "[1]", "string"]),
        (("family_test_pictures:SqliteSource", "family_test_pictures:No"), ["sources.0", "cannot be imported"]),
        (("family_test_pictures:SqliteSource", "file"), ["sources.0", "'file'", "did you mean files?"]),
        (("modality: image", "modalty: image"), ["sources.0.modalty", "did you mean modality?"]),
    ],
)
def test_its_settings_are_checked_as_ours_are(pictures: Path, change: tuple[str, str], words: list[Any]):
    assert change[0] in pictures.read_text()
    pictures.write_text(pictures.read_text().replace(*change))
    with pytest.raises(ProjectError) as error:
        load(pictures)
    for word in [str(pictures), *words]:
        assert word in str(error.value)
