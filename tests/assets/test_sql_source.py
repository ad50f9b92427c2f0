"""Rows of SQL databases: texts, media and files that a query gives, of SQLite, a real PostgreSQL and a real MariaDB."""

import json
import pickle
import sqlite3
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from assets.contents import attach_data
from assets.scan import scan
from assets.source_settings import SourceSettings
from assets.sources.base import SourceError
from orchestration.project import ProjectError, load

NOTES = "SELECT id, note, mark, seen FROM notes ORDER BY id"


def settings(modality: str = "text", **options: Any) -> SourceSettings:
    where = {"url": "sqlite:///shop.db", "query": NOTES, "key": "id"}
    return SourceSettings.of(name="s", modality=modality, kind="sql", **{**where, **options})


def write(path: Path, rows: Iterable[tuple[Any, ...]]) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE notes (id INTEGER PRIMARY KEY, note, mark, seen)")
        connection.executemany("INSERT INTO notes VALUES (?, ?, ?, ?)", rows)


def test_texts_and_what_is_none(tmp_path):
    rows = [(1, "one", 2.0, "2024-01-31 12:00"), (2, None, None, None), (3, 7, "x", None), (4, "d", "y", "soon")]
    write(tmp_path / "shop.db", [*rows, (5, "NA", "z", None)])
    listed = scan(settings(column="note", time="seen", missing="NA"), tmp_path)
    (row,) = listed.rows.to_pylist()
    assert (row["key"], row["text"], row["attributes"], row["time"].year) == (
        "1",
        "one",
        '{"mark": "2", "seen": "2024-01-31 12:00"}',
        2024,
    )
    refused = {row["key"] or "3": (row["reason"], row["message"]) for row in listed.quarantine.to_pylist()}
    assert {key: reason for key, (reason, _) in refused.items()} == {
        "2": "absent", "3": "malformed", "4": "malformed", "5": "absent"
    }  # fmt: skip
    for key, word in (("2", "'note'"), ("3", "the number 7"), ("4", "'seen'")):
        assert all(part in refused[key][1] for part in (str(tmp_path / "shop.db"), f"line {key}", word))


def test_media_are_read_again_by_what_names_their_row(tmp_path):
    write(tmp_path / "shop.db", [(n, b"%d" % (n // 2), "a:b", None) for n in range(6)])
    query = "SELECT id % 3 AS product, id, note, ' :x%' AS \"Odd Name\" FROM notes"
    source = settings("image", query=query, key="product", column="note", id=["id", "Odd Name"])
    listed = scan(source, tmp_path)
    assert sorted(listed.rows["key"].to_pylist()) == ["0", "0", "1", "1", "2", "2"]
    batch = attach_data(listed.rows, {"s": pickle.loads(pickle.dumps(source.make(tmp_path)))})
    assert batch["data_error"].null_count == 6
    assert sorted(batch["data"].to_pylist()) == [b"0", b"0", b"1", b"1", b"2", b"2"]
    commented = settings("image", query=f"{query} -- all", key="product", column="note", id=["id", "Odd Name"])
    assert attach_data(scan(commented, tmp_path).rows, {"s": commented.make(tmp_path)})["data_error"].null_count == 6
    nameless = scan(settings("image", query="SELECT NULL AS id, note FROM notes", key="id", column="note"), tmp_path)
    assert {row["reason"] for row in nameless.quarantine.to_pylist()} == {"malformed"}
    ambiguous = scan(settings("image", query=query, key="product", column="note"), tmp_path).quarantine.to_pylist()
    assert {row["reason"] for row in ambiguous} == {"ambiguous"} and "say by `id`" in ambiguous[0]["message"]


def test_rows_that_name_files(tmp_path):
    write(tmp_path / "shop.db", [(1, "a.png", "x", None), (2, "gone.png", "y", None)])
    (tmp_path / "photos").mkdir()
    for name in ("a", "b"):
        (tmp_path / f"photos/{name}.png").write_bytes(name.encode())
    listed = scan(settings("image", files="photos", file="note"), tmp_path)
    assert {row["key"]: json.loads(row["attributes"]) for row in listed.rows.to_pylist()} == {
        "1": {"note": "a.png", "mark": "x"},
        "b.png": {},
    }
    orders = [f"SELECT * FROM notes ORDER BY id {order}" for order in ("ASC", "DESC")]
    sources = [settings("image", query=query, files="photos", file="note").make(tmp_path) for query in orders]
    assert sources[0].signature() == sources[1].signature(), "the order of rows is no change"
    (missing,) = listed.quarantine.to_pylist()
    assert missing["reason"] == "not_found" and "gone.png" in missing["message"] and "shop.db" in missing["message"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"column": "nothing"}, "shop.db: no column 'nothing'; it has id, note, mark, seen"),
        (
            {"column": "note", "query": "SELECT x FROM notes"},
            "shop.db: the query fails .*no such column: x",
        ),
        ({"column": "note", "query": "DELETE FROM notes"}, "shop.db: the query fails .*readonly"),
        ({"column": "note", "url": "sqlite:///other.db"}, "other.db: no such database"),
        ({"column": "note", "url": {"env": "NO_SUCH_DB"}}, "the environment has no NO_SUCH_DB"),
        ({"column": "note", "url": "odd://host/db"}, "odd://host/db: cannot be opened"),
    ],
)
def test_what_cannot_be_read_says_what_to_do(tmp_path, options, words):
    write(tmp_path / "shop.db", [(1, "one", "x", None)])
    with pytest.raises(SourceError, match=words):
        scan(settings(**options), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shop.db"]
    if "url" in options and "other" in str(options["url"]):
        assert scan(settings(**options, optional=True), tmp_path).seen == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"url": {"env": "A", "url": "sqlite:///a"}, "column": "note"}, "needs the url"),
        ({"url": "postgresql://host/db?password=xyzzy42", "column": "note"}, "with a password"),
        ({"url": "no url", "column": "note"}, "expected postgresql://"),
        ({"query": None, "column": "note"}, "needs a query"),
        ({}, "needs the column with the texts"),
        ({"column": "note", "file": "mark"}, "no files"),
    ],
)
def test_options_that_do_not_fit(options, words):
    with pytest.raises(ValueError, match=words) as error:
        settings(**options)
    assert "xyzzy42" not in str(error.value)


def test_a_project_file_with_a_password_is_refused(tiny):
    url = "kind: sql, url: 'postgresql://me:xyzzy42@host/db', query: SELECT 1, key: a, column: b"
    tiny.write_text(tiny.read_text().replace("table: questions.csv, column: question, key: id", url))
    with pytest.raises(ProjectError, match=r"sources\.2\.url.*`url: {env: NAME}`") as error:
        load(tiny)
    assert "xyzzy42" not in str(error.value)


def terminate(connection: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")


def test_postgres(postgres, tmp_path, monkeypatch):
    """Types of its own, a server-side cursor, a connection that is lost, and a password that nobody reads."""
    import psycopg2

    monkeypatch.setenv("SHOP_DB", f"postgres://{postgres}/postgres")
    admin = psycopg2.connect(f"postgresql://{postgres}/postgres")
    admin.autocommit = True
    with admin.cursor() as cursor:
        cursor.execute("CREATE TABLE goods (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), n int, photo bytea, "
                       "price numeric, at timestamptz DEFAULT now(), tags text[])")  # fmt: skip
        cursor.execute("CREATE SEQUENCE counted")
        cursor.execute("INSERT INTO goods (n, photo, price, tags) SELECT n, decode(repeat('ab', n + 1), 'hex'), 1.50, "
                       "'{a,b}' FROM generate_series(0, 99) n")  # fmt: skip
    query = "SELECT id, n, photo, price, at, tags FROM goods WHERE n::text NOT LIKE '9_' ORDER BY n"
    options = {"url": {"env": "SHOP_DB"}, "query": query, "key": "id", "time": "at"}
    source = settings("image", column="photo", **options)
    listed = scan(source, tmp_path)
    found = {json.loads(row["attributes"])["n"]: row for row in listed.rows.to_pylist()}
    assert set(found) == {str(n) for n in [*range(90)]} and found["7"]["size"] == 8 and found["7"]["time"] is not None
    attributes: Mapping[str, str] = json.loads(found["7"]["attributes"])
    assert (attributes["price"], attributes["tags"]) == ("1.50", '["a", "b"]')
    made = source.make(tmp_path)
    entries = made.list()
    first = next(entries)
    terminate(admin)
    with pytest.raises(SourceError, match=r"/postgres: the connection was lost after \d+ rows .*run again") as lost:
        list(entries)
    assert [entry.sha256 for entry in made.list()] == [found[str(n)]["sha256"] for n in range(90)]
    assert b"".join(made.open(first)) == b"\xab"
    terminate(admin)  # those that the pool keeps
    assert b"".join(made.open(first)) == b"\xab"
    texts = scan(
        settings(**{**options, "query": "SELECT *, 'Good ' || n AS said FROM goods", "column": "said"}), tmp_path
    )
    assert texts.rows.num_rows == 100 and "\\xab" not in str(texts.rows.to_pylist())
    with pytest.raises(SourceError, match=r"the query fails .*read-only"):
        scan(
            settings(**{**options, "query": "SELECT nextval('counted') AS id, n FROM goods"}, column="n"),
            tmp_path,
        )
    admin.close()
    monkeypatch.setenv("SHOP_DB", f"postgresql://{postgres}/postgres".replace("xyzzy42", "xyzzy43"))
    with pytest.raises(SourceError, match="cannot be reached") as wrong:
        scan(source, tmp_path)
    said = [
        str(lost.value),
        str(wrong.value),
        str(listed.rows.to_pylist()),
        repr(source),
        str(made),
        pickle.dumps(made),
    ]
    assert not any("xyzzy4" in str(words) for words in said)


def test_mysql(mariadb, tmp_path, monkeypatch):
    """By MariaDB: types of its own, a connection that is lost, nothing written, and a password that nobody reads."""
    import pymysql

    monkeypatch.setenv("SHOP_DB", f"mysql://{mariadb}/shop")
    login, _, place = mariadb.rpartition("@")
    user, password = login.split(":")
    host, port = place.split(":")
    admin = pymysql.connect(host=host, port=int(port), user=user, password=password, database="shop", autocommit=True)
    with admin.cursor() as cursor:
        cursor.execute("CREATE TABLE goods (id INT PRIMARY KEY, photo LONGBLOB, said TEXT, price DECIMAL(6, 2), "
                       "at DATETIME(3), tags JSON)")  # fmt: skip
        rows = [(n, b"\xab" * (n + 1), f"Größe 50% 好 :{n}", 1.5, "2024-05-06 07:08:09.010", "[1]") for n in range(50)]
        cursor.executemany("INSERT INTO goods VALUES (%s, %s, %s, %s, %s, %s)", rows)
    query = "SELECT id, photo, said, price, at, tags FROM goods WHERE said LIKE '%50%%' ORDER BY id"
    options = {"url": {"env": "SHOP_DB"}, "query": query, "key": "id", "time": "at"}
    source = settings("image", column="photo", **options)
    listed = scan(source, tmp_path)
    row = next(row for row in listed.rows.to_pylist() if row["key"] == "7")
    assert listed.rows.num_rows == 50 and row["size"] == 8 and row["time"].microsecond == 10_000
    assert json.loads(row["attributes"]) == {
        "said": "Größe 50% 好 :7", "price": "1.50", "at": "2024-05-06 07:08:09.010000", "tags": "[1]"
    }  # fmt: skip
    made = source.make(tmp_path)
    first, *_ = made.list()
    with admin.cursor() as cursor:
        cursor.execute(
            "SELECT id FROM information_schema.processlist WHERE id <> connection_id() AND user = 'triptych'"
        )
        for (number,) in cursor.fetchall():
            cursor.execute(f"KILL {number}")
    assert b"".join(made.open(first)) == b"\xab"
    assert scan(settings(**{**options, "column": "said"}), tmp_path).rows.num_rows == 50
    for wrong, words in (("DELETE FROM goods", "READ ONLY"), ("SELECT nothing FROM goods", "nothing")):
        with pytest.raises(SourceError, match=f"the query fails .*{words}"):
            scan(settings(**{**options, "query": wrong}, column="said"), tmp_path)
    with admin.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM goods")
        assert cursor.fetchone() == (50,)
    admin.close()
    monkeypatch.setenv("SHOP_DB", f"mysql://{mariadb}/shop".replace("xyzzy42", "xyzzy43"))
    with pytest.raises(SourceError, match="cannot be reached") as error:
        scan(source, tmp_path)
    assert not any("xyzzy4" in str(said) for said in (error.value, listed.rows.to_pylist(), repr(source), made))
