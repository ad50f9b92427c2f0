"""The ways to web servers: through proxies, and with tokens; servers and proxies are on loopback."""

import base64
import datetime
import ipaddress
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from assets import web_requests
from assets.contents import attach_data
from assets.scan import Scan, scan
from assets.source_settings import SourceSettings
from assets.sources.base import SourceError
from tests.assets.file_server import FileServer, serving

ROOT = Path("/nowhere")
SECRET = "xyzzy42"
PUBLIC = "93.184.216.34"


@pytest.fixture
def server(monkeypatch) -> Iterator[FileServer]:
    monkeypatch.setattr(web_requests, "BACKOFF_SECONDS", 0.01)
    for name in ("http", "https", "all", "no"):
        monkeypatch.delenv(f"{name}_proxy", raising=False)
        monkeypatch.delenv(f"{name.upper()}_PROXY", raising=False)
    with serving() as server:
        server.put("p/a.png", b"A" * 1000)
        yield server


@pytest.fixture
def proxy(server, monkeypatch) -> Iterator[FileServer]:
    with serving() as proxy:
        proxy.put("p/a.png", b"by proxy")
        monkeypatch.setenv("HTTP_PROXY", proxy.url.replace("//", f"//me:{SECRET}%21@"))
        monkeypatch.setenv("https_proxy", proxy.url.removeprefix("http://"))
        yield proxy


def settings(**fields: Any) -> SourceSettings:
    return SourceSettings.of(name="s", modality="image", **{"allow_private": True} | fields)


def contents(source: SourceSettings, listed: Scan) -> list[bytes]:
    return attach_data(listed.rows, {"s": source.make(ROOT)})["data"].to_pylist()


def test_what_the_environment_names_is_asked_for_all_but_some_hosts(server, proxy, monkeypatch):
    source = settings(files="http://files.example/p/a.png")
    assert contents(source, scan(source, ROOT)) == [b"by proxy"]
    assert {line.split()[1] for line in proxy.asked} == {"http://files.example/p/a.png"}
    logins = {headers["Proxy-Authorization"] for headers in proxy.headers}
    assert logins == {"Basic " + base64.b64encode(f"me:{SECRET}!".encode()).decode()}
    assert {headers["Host"] for headers in proxy.headers} == {"files.example"}
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    source = settings(files=f"{server.url}/p/a.png")
    assert contents(source, scan(source, ROOT)) == [b"A" * 1000]


def test_a_redirect_goes_the_way_of_its_own_host(server, proxy, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("TOKEN", SECRET)
    proxy.moved["m.png"] = f"{server.url}/p/a.png"
    source = settings(files="http://files.example/m.png", token_env="TOKEN")
    assert contents(source, scan(source, ROOT)) == [b"A" * 1000]
    assert {headers["Authorization"] for headers in proxy.headers} == {f"Bearer {SECRET}"}
    for headers in server.headers:
        assert headers["Host"] == server.url.removeprefix("http://")
        assert headers["Authorization"] is headers["Proxy-Authorization"] is None


def test_nothing_private_is_asked_through_a_proxy(server, proxy, monkeypatch):
    """As far as this machine can tell; a name that only the proxy knows is not asked for."""
    known = {"inside.example": "10.0.0.1", "outside.example": PUBLIC}

    def found(host: str, port: Any, *_: Any, **__: Any) -> list[Any]:
        if host == "unknown.example":
            raise socket.gaierror(socket.EAI_NONAME, "not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (known.get(host, host), port))]

    monkeypatch.setattr(socket, "getaddrinfo", found)
    why = {
        "inside.example": r"inside\.example \(10\.0\.0\.1\) is this machine or in a private network",
        "169.254.169.254": "is this machine or in a private network",
        "unknown.example": r"nobody can tell .* `allow_private: true` on the source leaves it to the proxy",
    }
    for host, words in why.items():
        with pytest.raises(SourceError, match=words):
            scan(settings(files=f"http://{host}/p/a.png", allow_private=False), ROOT)
    assert proxy.asked == []
    proxy.moved["m.png"] = "http://inside.example/p/a.png"
    with pytest.raises(SourceError, match=why["inside.example"]):
        scan(settings(files="http://outside.example/m.png", allow_private=False), ROOT)
    assert {line.split()[1] for line in proxy.asked} == {"http://outside.example/m.png"}
    source = settings(files="http://unknown.example/p/a.png")
    assert contents(source, scan(source, ROOT)) == [b"by proxy"]


def test_a_proxy_that_does_not_answer_is_named_without_its_login(server, monkeypatch):
    for proxy, words in {
        f"http://me:{SECRET}@127.0.0.1:9": "the proxy of the environment: .*refused",
        f"socks5://me:{SECRET}@127.0.0.1:9": "unsupported scheme socks5",
    }.items():
        monkeypatch.setenv("ALL_PROXY", proxy)
        with pytest.raises(SourceError, match=rf"a\.png: cannot be listed: .*{words}") as error:
            scan(settings(files=f"{server.url}/p/a.png"), ROOT)
        assert SECRET not in str(error.value)


def certified(folder: Path) -> Path:
    """The certificate of 127.0.0.1, with its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    now = datetime.datetime.now(datetime.UTC)
    hosts = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - datetime.timedelta(1)).not_valid_after(now + datetime.timedelta(1))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    certificate = builder.add_extension(hosts, critical=True).sign(key, hashes.SHA256())
    encoding = serialization.Encoding.PEM
    packed = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "server.pem").write_bytes(packed + certificate.public_bytes(encoding))
    return folder / "server.pem"


def test_https_goes_through_a_tunnel_that_sees_no_token(server, proxy, tmp_path, monkeypatch):
    pem = certified(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    monkeypatch.setenv("TOKEN", SECRET)
    source = settings(files=server.url.replace("http", "https") + "/p/a.png", token_env="TOKEN")
    assert contents(source, scan(source, ROOT)) == [b"A" * 1000]
    assert set(proxy.asked) == {f"CONNECT 127.0.0.1:{server.server_port}"}
    assert SECRET not in "".join(map(str, proxy.headers))
    assert {headers["Authorization"] for headers in server.headers} == {f"Bearer {SECRET}"}


def test_a_token_goes_to_the_source_s_own_server_alone(server, monkeypatch):
    monkeypatch.setenv("TOKEN", f" {SECRET}\n")
    with serving() as other:
        other.put("p/b.png", b"B")
        server.moved["m/b.png"] = f"{other.url}/p/b.png"
        server.put("t.csv", f"id,url\n1,p/a.png\n2,m/b.png\n3,{other.url}/p/b.png\n".encode())
        table = {"files": server.url, "table": f"{server.url}/t.csv", "key": "id", "file": "url"}
        source = settings(**table, token_env="TOKEN")
        listed = scan(source, ROOT)
        assert contents(source, listed) == [b"A" * 1000, b"B"] or contents(source, listed) == [b"B", b"A" * 1000]
        assert listed.quarantine["reason"].to_pylist() == ["outside_root"]
        assert {headers["Authorization"] for headers in server.headers} == {f"Bearer {SECRET}"}
        assert other.headers and not any(headers["Authorization"] for headers in other.headers)
        assert SECRET not in str(listed.rows.to_pylist()) + str(listed.quarantine.to_pylist())
        for elsewhere in (other.url, "https://", "https://files.example"):
            with pytest.raises(ValueError, match="has a token_env, which is for one web server"):
                settings(**table | {"files": elsewhere}, token_env="TOKEN")
    server.asked.clear()
    with pytest.raises(SourceError, match="would get the token of TOKEN unencrypted"):
        scan(settings(files=f"{server.url}/p/a.png", token_env="TOKEN", allow_private=False), ROOT)
    assert server.asked == []


@pytest.mark.parametrize(("value", "why"), [(None, "is not set"), (f"{SECRET}\nX: y", "holds what no bearer token")])
def test_a_token_that_is_none_ends_the_listing_and_is_not_said(server, monkeypatch, value, why):
    monkeypatch.setenv("TOKEN", value) if value else monkeypatch.delenv("TOKEN", raising=False)
    server.put("t.csv", b"url\np/a.png\n")
    for more in ({}, {"table": f"{server.url}/t.csv", "key": "url"}):
        with pytest.raises(SourceError, match=f"token_env is TOKEN, and that variable .* {why}") as error:
            scan(settings(files=f"{server.url}{'' if more else '/p/a.png'}", token_env="TOKEN", **more), ROOT)
        assert SECRET not in str(error.value)
    with pytest.raises(ValueError, match="expected the name of a variable") as refused:
        settings(files=server.url, token_env=SECRET)
    assert SECRET not in str(refused.value)
