"""Sources behind http, on a server on loopback, which is a private address: sources here say that they may."""

import base64
import hashlib
import io
import json
import os
import pickle
import socket
import tarfile
from collections.abc import Iterator
from email.message import Message
from pathlib import Path
from typing import Any

import pytest

from assets import web_connections, web_requests
from assets.contents import attach_data
from assets.scan import Scan, scan
from assets.source_settings import SourceSettings
from assets.sources.base import SourceError
from tests.assets.file_server import OLD, FileServer, serving
from training.settings import MediaLimits

ROOT = Path("/nowhere")
A, B = os.urandom(300_000), b"B" * 1000
SECRET = "xyzzy42"


@pytest.fixture
def server(monkeypatch) -> Iterator[FileServer]:
    monkeypatch.setattr(web_requests, "BACKOFF_SECONDS", 0.01)
    with serving() as server:
        server.put("p/a.png", A)
        server.put("p/b.png", B)
        yield server


def settings(modality: Any = "image", **fields: Any) -> SourceSettings:
    return SourceSettings.of(name="s", modality=modality, **{"allow_private": True} | fields)


def contents(source: SourceSettings, listed: Scan) -> dict[str, bytes]:
    batch = attach_data(listed.rows, {"s": source.make(ROOT)})
    return dict(zip(batch["key"].to_pylist(), batch["data"].to_pylist(), strict=True))


def refused(listed: Scan) -> dict[str, str]:
    return dict(zip(listed.quarantine["reason"].to_pylist(), listed.quarantine["message"].to_pylist(), strict=True))


@pytest.fixture
def both(server) -> SourceSettings:
    return settings(files=[f"{server.url}/p/a.png", f"{server.url}/p/b.png"])


@pytest.mark.parametrize("lacks", ["nothing", "etags", "times", "ranges", "heads", "lengths"])
def test_an_unchanged_file_costs_a_question(server, both, lacks):
    if lacks != "nothing":
        setattr(server, lacks, False)
    first = scan(both, ROOT)
    assert contents(both, first) == {"a": A, "b": B}
    server.reads()
    second = scan(both, ROOT, first.rows)
    assert second.reused == 2 and second.rows.equals(first.rows)
    assert len(server.asked) == 2 and not [line for line in server.reads() if "bytes=0-0" not in line]
    server.put("p/a.png", B + B, OLD + 1)
    assert contents(both, scan(both, ROOT, first.rows)) == {"a": B + B, "b": B}


def test_what_nothing_tells_apart_is_read_again(server, both):
    server.etags = server.times = False
    assert scan(both, ROOT, scan(both, ROOT).rows).reused == 0


@pytest.mark.parametrize("fault", [503, "drop", "cut"])
@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_download_goes_on(server, both, fault, ranges):
    server.ranges = ranges
    server.faults["p/a.png"] += [fault, fault]
    assert contents(both, scan(both, ROOT)) == {"a": A, "b": B}
    parts = [line.partition("bytes=")[2] for line in server.reads("a.png")]
    assert len(parts) == 4 and parts[0] == parts[3] == "", "the last is read to compare"
    assert all((part not in ("", "0-")) == (fault == "cut") for part in parts[1:3]), "from where it broke off"


@pytest.mark.parametrize("lengths", [True, False])
def test_half_a_file_is_never_taken_for_all(server, both, lengths):
    listed = scan(both, ROOT)
    server.lengths, server.ranges = lengths, False  # else each try gets half of the rest
    server.faults["p/a.png"] += ["cut"] * 9
    assert "a.png: cannot be read" in refused(scan(both, ROOT))["unreadable"]
    server.faults["p/a.png"] = ["short"]
    (error, _) = attach_data(listed.rows, {"s": both.make(ROOT)})["data_error"].to_pylist()
    assert "has 150000 bytes and was listed with 300000; run again" in error


@pytest.mark.parametrize("faults", [[], ["cut"]])
def test_a_file_that_changes_while_it_is_read_is_refused(server, both, faults):
    server.faults["p/a.png"] += [*faults, lambda: server.put("p/a.png", b"x" * len(A))]
    assert "a.png: changed while it was read; run again" in refused(scan(both, ROOT))["unreadable"]
    assert contents(both, scan(both, ROOT))["a"] == b"x" * len(A)


@pytest.mark.parametrize("lengths", [True, False])
def test_the_limit_holds_before_and_while_reading(server, both, lengths):
    server.lengths = lengths
    listed = scan(both, ROOT, limits=MediaLimits(max_bytes=2000))
    assert listed.rows["key"].to_pylist() == ["b"] and "limits.max_bytes" in refused(listed)["too_large"]
    assert len(server.reads("a.png")) == (0 if lengths else 1)


def test_a_checksum_is_held_against_what_came(server, both):
    digest = scan(both, ROOT).rows["sha256"].to_pylist()[0]
    one = {"files": f"{server.url}/p/a.png"}
    assert scan(settings(**one, sha256=digest.upper()), ROOT).rows.num_rows == 1
    assert (
        f"its SHA-256 is {digest}, expected 000"
        in refused(scan(settings(**one, sha256="0" * 64), ROOT))["wrong_checksum"]
    )
    with pytest.raises(ValueError, match="has sha256 'x': without a table it is the 64 hex digits of one file"):
        settings(**one, sha256="x")
    server.put("t.csv", f"url,sum\np/a.png,{digest}\np/b.png,{digest}\np/c.png,abc\n".encode())
    listed = scan(settings(files=server.url, table=f"{server.url}/t.csv", key="url", sha256="sum"), ROOT)
    assert listed.rows["key"].to_pylist() == ["p/a.png"]
    assert refused(listed).keys() == {"wrong_checksum", "malformed"}


def test_a_tar_is_read_by_parts(server):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, content in {"a.png": A, "d/b.png": B}.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    server.put("x.tar", packed.getvalue())
    source = settings(files=f"{server.url}/x.tar")
    first = scan(source, ROOT)
    assert contents(source, first) == {"a": A, "d/b": B} and all("bytes=" in line for line in server.reads())
    assert scan(source, ROOT, first.rows).reused == 2
    server.ranges = False
    with pytest.raises(SourceError, match=r"x\.tar: cannot be read: its server gives no parts of files"):
        scan(source, ROOT)


def test_a_table_of_urls_and_nothing_of_what_signs_them_is_kept(server):
    signed = [f"{server.url}/p/b.png?sig={SECRET}", f"http://me:{SECRET}@{server.url[7:]}/p/a.png"]
    lines = ["p/a.png", *signed, "gone.png", "http://other.example/x.png", "../x.png", "", f"{server.url}/p/%2e%2e/x"]
    table = "id,url\n" + "".join(f"{n},{line}\n" for n, line in enumerate(lines))
    server.put("t.csv", table.encode())
    source = settings(files=server.url, table=f"{server.url}/t.csv", key="id", file="url")
    listed = scan(source, ROOT)
    assert contents(source, listed) == {"0": A, "1": B, "2": A}
    assert listed.quarantine["reason"].to_pylist() == ["not_found", *["outside_root"] * 2, "absent", "outside_root"]
    assert any(f"me:{SECRET}" in line for line in map(_login, server.headers)), "it is the server's to know"
    assert SECRET not in str(listed.rows.to_pylist()) + str(listed.quarantine.to_pylist())
    server.reads()
    assert scan(source, ROOT, listed.rows).reused == 3
    assert [line for line in server.reads() if "t.csv" not in line] == []
    elsewhere = pickle.loads(pickle.dumps(source.make(ROOT)))  # as worker processes get it
    assert attach_data(listed.rows, {"s": elsewhere})["data"].to_pylist() == list(contents(source, listed).values())
    server.put("t.csv", table.replace(SECRET, "renewed").encode())  # as links that expire are
    assert scan(source, ROOT, listed.rows).reused == 3


def test_one_uri_may_stand_for_several_files(server):
    """What names a file may be called like a secret, and is cut."""
    for n in range(3):
        server.put(f"get?token=t{n}", b"%d" % n)
    lines = "".join(f"{n},{server.url}/get?token=t{n},{server.url}/x?sig={SECRET}\n" for n in range(3))
    server.put("t.csv", f"id,url,other\n{lines}".encode())
    source = settings(files=server.url, table=f"{server.url}/t.csv", key="id", file="url")
    listed = scan(source, ROOT)
    batch = attach_data(listed.rows, {"s": source.make(ROOT)})
    assert sorted(batch["data"].to_pylist()) == [b"0", b"1", b"2"]
    assert len(set(listed.rows["uri"].to_pylist())) == 1 and SECRET not in str(listed.rows.to_pylist())
    again = scan(source, ROOT, listed.rows)
    assert sorted(again.rows["sha256"].to_pylist()) == sorted(listed.rows["sha256"].to_pylist())


@pytest.mark.parametrize("rows", [(A, B), (B, A)])
def test_each_row_that_names_a_file_has_its_own_checksum(server, rows):
    sums = [hashlib.sha256(content).hexdigest() for content in rows]
    server.put("t.csv", "".join(["id,url,sum\n", *(f"{n},p/a.png,{s}\n" for n, s in enumerate(sums))]).encode())
    listed = scan(settings(files=server.url, table=f"{server.url}/t.csv", key="id", file="url", sha256="sum"), ROOT)
    assert listed.rows["key"].to_pylist() == [str(rows.index(A))]
    assert refused(listed).keys() == {"wrong_checksum"}


def test_a_url_that_cannot_be_read_is_a_row_that_is_refused(server):
    host = server.url.removeprefix("http://")
    bad = ["http://[bad/x", "http://host:port/x", "http://a..b/x", f"http://other.example\\@{host}/p/a.png"]
    server.put("t.csv", "".join(["url\n", *(f"{url}\n" for url in (f"{server.url}/p/b.png", *bad))]).encode())
    listed = scan(settings(files="http://", table=f"{server.url}/t.csv", key="url"), ROOT)
    assert listed.rows.num_rows == 1 and len(listed.quarantine) == len(bad)
    assert {"outside_root", "unreadable"} == set(listed.quarantine["reason"].to_pylist())


def test_parts_of_the_path_behind_a_url_are_columns(server):
    server.put("t.csv", f"url\n{server.url}/p/a.png\n".encode())
    source = settings(files=server.url, table=f"{server.url}/t.csv", key="url", path="{kind}/{name}")
    (row,) = scan(source, ROOT).rows.to_pylist()
    assert json.loads(row["attributes"]) == {"kind": "p", "name": "a"}


def _login(headers: Message) -> str:
    return base64.b64decode(headers.get("Authorization", "").removeprefix("Basic ")).decode()


def test_nothing_private_is_asked_unless_the_source_says_so(server):
    for host in ("127.0.0.1", "localhost"):
        place = f"http://{host}:{server.server_port}/p/a.png"
        with pytest.raises(SourceError, match=rf"{host} \(.*\) is this machine or in a private network.*allow_private"):
            scan(settings(files=place, allow_private=False), ROOT)
    assert server.asked == []


def test_a_table_leads_nowhere_private(server, tmp_path):
    (tmp_path / "t.csv").write_text(f"url\n{server.url}/p/a.png\nhttp://169.254.169.254/latest\n")
    source = settings(files="http://", table="t.csv", key="url", allow_private=False)
    listed = scan(source, tmp_path)
    assert listed.quarantine["reason"].to_pylist() == ["private_address"] * 2 and server.asked == []
    assert "t.csv line 2" in listed.quarantine["message"][0].as_py()


@pytest.mark.parametrize(
    ("public", "addresses"),
    [
        (False, "127.0.0.1 10.0.0.1 192.168.1.1 169.254.169.254 100.64.0.1 0.0.0.0 224.0.0.1"),
        (False, "::1 :: fe80::1%eth0 fd00::1 ::ffff:127.0.0.1 2002:7f00:1:: ff02::1 64:ff9b::a9fe:a9fe ::127.0.0.1"),
        (True, "1.1.1.1 2606:4700::1111 64:ff9b::101:101"),
    ],
)
def test_which_addresses_are_public(public, addresses):
    assert {web_connections.is_public(address) for address in addresses.split()} == {public}


def test_the_address_that_was_judged_is_connected_to_at_every_redirect(server, monkeypatch):
    """A name that leads elsewhere when it is asked again gains nothing: it is asked once for each connection."""
    judged, asked = [], []
    ask = socket.getaddrinfo
    monkeypatch.setattr(web_connections, "is_public", lambda address: judged.append(address) or len(judged) == 1)
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *a, **k: asked.append(host) or ask(host, *a, **k))
    server.moved["m.png"] = f"http://localhost:{server.server_port}/p/a.png"
    with pytest.raises(SourceError, match=r"localhost .* is this machine"):
        scan(settings(files=f"{server.url}/m.png", allow_private=False), ROOT)
    assert judged[0] == "127.0.0.1" and asked.count("localhost") == 1
    assert [line.split()[1] for line in server.asked] == ["/m.png"], "the first was reached, and where it led was not"


def test_redirects_are_followed_and_come_to_an_end(server):
    server.moved |= {"m/a.png": f"{server.url}/p/a.png", "loop": "/loop"}
    source = settings(files=f"{server.url}/m/a.png")
    assert contents(source, scan(source, ROOT)) == {"a": A}
    with pytest.raises(SourceError, match="loop: cannot be listed: too many redirects"):
        scan(settings(files=f"{server.url}/loop"), ROOT)


def test_what_is_not_there_or_does_not_answer_is_named(server):
    places = {f"{server.url}/gone.png": "no such file or folder", f"{server.url}/p/*.png": "no such file or folder"}
    places["http://127.0.0.1:9/a.png?x=1"] = r"/a\.png\?x=1: cannot be listed: .*refused"
    for files, words in places.items():
        with pytest.raises(SourceError, match=words):
            scan(settings(files=files), ROOT)
    assert scan(settings(files=f"{server.url}/gone.png", optional=True), ROOT).seen == 0
    server.faults["p/a.png"] += [403]
    assert "the server answers 403" in refused(scan(settings(files=f"{server.url}/p/a.png"), ROOT))["unreadable"]


@pytest.mark.parametrize("place", [f"https://me:{SECRET}@host/a.tar", f"https://host/a.tar?se={SECRET}"])
def test_a_source_s_own_place_holds_no_secret(place):
    with pytest.raises(ValueError, match="and a login or signature is not for this file") as error:
        settings(files=place)
    assert SECRET not in str(error.value)


def test_a_login_comes_from_netrc(server, tmp_path, monkeypatch):
    (tmp_path / "netrc").write_text(f"machine 127.0.0.1 login me password {SECRET}\n")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    scan(settings(files=f"{server.url}/p/a.png"), ROOT)
    assert {_login(headers) for headers in server.headers} == {f"me:{SECRET}"}
    (tmp_path / "netrc").write_text(f"{SECRET} is no netrc\n")
    with pytest.raises(SourceError, match="netrc cannot be read: NetrcParseError") as error:
        scan(settings(files=f"{server.url}/p/a.png"), ROOT)
    assert SECRET not in str(error.value)
