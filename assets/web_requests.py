"""Questions to web servers: tried again where that helps, with logins from ~/.netrc, and to public addresses alone.

What is not public is reached where a source says `allow_private: true`: an address is looked up once, judged, and
connected to, at every redirect anew, so that no name leads elsewhere in between. Proxies are not used.
"""

import contextlib
import ipaddress
import logging
import netrc
import os
import re
import socket
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, cast
from urllib.parse import unquote

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError, NameResolutionError, NewConnectionError
from urllib3.util import Retry, Timeout, connection, make_headers, parse_url

from assets.remote_settings import RemoteSettings
from assets.sources.base import SourceError
from training.credentials import mask

FAILURES = 4  # in a row, before it is given up
BACKOFF_SECONDS = 0.25  # doubled each time
_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # IPv4 behind IPv6 (RFC 6052)
_TIMEOUT = Timeout(connect=10, read=60)


class PrivateAddressError(SourceError):
    """A URL leads to this machine or into a private network, and its source does not allow that."""


class BrokenOffError(OSError):
    """An answer that began, and did not come to its end: worth asking for the rest."""


class _Public:
    """Of a connection: to public addresses only."""

    def _new_conn(self) -> socket.socket:
        this = cast(HTTPConnection, self)
        try:
            found = socket.getaddrinfo(this.host, this.port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise NameResolutionError(this.host, this, cast(socket.gaierror, error)) from error
        addresses = [str(place[0]) for *_, place in found]
        if private := [address for address in addresses if not is_public(address)]:
            raise PrivateAddressError(
                f"{this.host} ({private[0]}) is this machine or in a private network: it was not asked; "
                "`allow_private: true` on the source reads it"
            )
        for address in addresses:
            with contextlib.suppress(OSError):
                return connection.create_connection(
                    (address, this.port), this.timeout, socket_options=this.socket_options
                )
        raise NewConnectionError(this, f"no connection to {', '.join(addresses)} port {this.port}")


def is_public(address: str) -> bool:
    ip = ipaddress.ip_address(address.partition("%")[0])
    inner = getattr(ip, "ipv4_mapped", None) or getattr(ip, "sixtofour", None) or ip
    if ip.version == 6 and (ip in _NAT64 or int(ip) >> 32 == 0):
        inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return bool(inner.is_global) and not inner.is_multicast


class _PublicHTTP(_Public, HTTPConnection):
    pass


class _PublicHTTPS(_Public, HTTPSConnection):
    pass


class _HTTPPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _PublicHTTP


class _HTTPSPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _PublicHTTPS


class _Masked(logging.Filter):
    """urllib3 logs what it asks again, with the whole URL."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = mask(record.getMessage()), ()
        return True


@lru_cache
def _pools(process: int, allow_private: bool) -> urllib3.PoolManager:
    for name in ("connectionpool", "poolmanager", "util.retry"):
        logging.getLogger(f"urllib3.{name}").addFilter(_Masked())
    manager = urllib3.PoolManager(maxsize=16, timeout=_TIMEOUT)
    if not allow_private:
        manager.pool_classes_by_scheme = {"http": _HTTPPool, "https": _HTTPSPool}
    return manager


@contextlib.contextmanager
def asked(method: str, url: str, access: RemoteSettings, **headers: str) -> Iterator[Any]:
    """What a server answers, without having read it. Raises OSError, or SourceError (`PrivateAddressError`)."""
    headers = {name.replace("_", "-"): value for name, value in headers.items()} | {"Accept-Encoding": "identity"}
    answer = None
    try:
        parts = parse_url(url)
        if login := unquote(parts.auth) if parts.auth else _login(parts.host or ""):
            headers |= make_headers(basic_auth=login)
        pools = _pools(os.getpid(), access.allow_private)
        bare = parts._replace(auth=None, fragment=None).url
        answer = pools.request(method, bare, headers=headers, retries=_retries(), preload_content=False)
        yield answer
    except (HTTPError, UnicodeError) as error:  # the second of a host name, or a login, that cannot be written
        kind = OSError if answer is None else BrokenOffError
        raise kind(_words(error)) from None  # its own words may hold the whole URL
    finally:
        if answer is not None:
            if method == "HEAD":  # nothing follows, so the next may use its connection
                answer.release_conn()
            answer.close()


def _retries() -> Retry:
    return Retry(
        total=FAILURES,
        redirect=5,
        status_forcelist=(429, 500, 502, 503, 504),
        backoff_factor=BACKOFF_SECONDS,
        retry_after_max=30,
        raise_on_status=False,
    )


def _words(error: Exception) -> str:
    reason = getattr(error, "reason", None) or error
    return mask(re.sub(r"^\w+\(host=[^)]*\): ", "", str(reason)) or type(reason).__name__)


def _login(host: str) -> str | None:
    """user:password of a host, by ~/.netrc (or the file of NETRC)."""
    path = os.environ.get("NETRC") or os.path.expanduser("~/.netrc")
    try:
        known = netrc.netrc(path).authenticators(host)
    except FileNotFoundError:
        return None
    except (OSError, netrc.NetrcParseError) as error:
        raise OSError(f"{path} cannot be read: {type(error).__name__}") from None  # its words may hold a password
    return f"{known[0]}:{known[2]}" if known else None
