"""Connections to web servers: to public addresses alone, and through the proxy that the environment names.

What is not public is reached where a source says `allow_private: true`: an address is looked up once, judged, and
connected to, at every redirect anew, so that no name leads elsewhere in between. A proxy (HTTP_PROXY, HTTPS_PROXY,
ALL_PROXY, but for the hosts of NO_PROXY) looks names up itself: they are judged here by what they lead to from here,
and one that is not known here is not asked for. Where a proxy goes is its own rules' to bound.
"""

import contextlib
import ipaddress
import logging
import os
import socket
from functools import lru_cache
from typing import Any, cast
from urllib.parse import unquote
from urllib.request import getproxies_environment, proxy_bypass

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import NameResolutionError, NewConnectionError
from urllib3.util import Timeout, connection, make_headers, parse_url

from assets.storage import PrivateAddressError
from training.credentials import mask

_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # IPv4 behind IPv6 (RFC 6052)
_TIMEOUT = Timeout(connect=10, read=60)


def is_public(address: str) -> bool:
    ip = ipaddress.ip_address(address.partition("%")[0])
    inner = getattr(ip, "ipv4_mapped", None) or getattr(ip, "sixtofour", None) or ip
    if ip.version == 6 and (ip in _NAT64 or int(ip) >> 32 == 0):
        inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return bool(inner.is_global) and not inner.is_multicast


def _public_addresses(host: str, port: int | None) -> list[str]:
    """Raises PrivateAddressError, or OSError where nobody knows the host."""
    found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    addresses = [str(place[0]) for *_, place in found]
    if private := [address for address in addresses if not is_public(address)]:
        raise PrivateAddressError(
            f"{host} ({private[0]}) is this machine or in a private network: it was not asked; "
            "`allow_private: true` on the source reads it"
        )
    return addresses


class _Public:
    """Of a connection: to public addresses only."""

    def _new_conn(self) -> socket.socket:
        this = cast(HTTPConnection, self)
        try:
            addresses = _public_addresses(this.host, this.port)
        except OSError as error:
            raise NameResolutionError(this.host, this, cast(socket.gaierror, error)) from error
        for address in addresses:
            with contextlib.suppress(OSError):
                return connection.create_connection(
                    (address, this.port), this.timeout, socket_options=this.socket_options
                )
        raise NewConnectionError(this, f"no connection to {', '.join(addresses)} port {this.port}")


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


class _Routed(urllib3.PoolManager):
    """Each URL, that of a redirect too, by the way that the environment names for it."""

    allow_private = False

    def urlopen(self, method: str, url: str, redirect: bool = True, **more: Any) -> Any:  # type: ignore[override]
        way = pools_of(url, self.allow_private)
        # Who asked a proxy has put the host of that URL into the headers, which a redirect would carry on.
        more["headers"] = {name: value for name, value in more.get("headers", {}).items() if name != "Host"}
        if way is not self:
            return way.urlopen(method, url, redirect, **more)
        return super().urlopen(method, url, redirect, **more)


class _Proxied(_Routed, urllib3.ProxyManager):
    def connection_from_host(self, host: str | None, port: int | None = None, *args: Any, **more: Any) -> Any:
        if not self.allow_private:
            try:
                _public_addresses(host or "", port)
            except OSError:
                raise PrivateAddressError(
                    f"{host} is not known to this machine, and nobody can tell whether the proxy would find it in a "
                    "private network: it was not asked; `allow_private: true` on the source leaves it to the proxy"
                ) from None
        return super().connection_from_host(host, port, *args, **more)


def pools_of(url: str, allow_private: bool) -> urllib3.PoolManager:
    """What reaches a URL: kept connections, of this process."""
    return _pools(os.getpid(), allow_private, _proxy(url))


def _proxy(url: str) -> str | None:
    parts, proxies = parse_url(url), getproxies_environment()
    proxy = proxies.get(parts.scheme or "") or proxies.get("all")
    if not proxy or proxy_bypass(parts.netloc or ""):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


@lru_cache
def _pools(process: int, allow_private: bool, proxy: str | None) -> urllib3.PoolManager:
    for name in ("connectionpool", "poolmanager", "util.retry"):
        logging.getLogger(f"urllib3.{name}").addFilter(_Masked())
    manager: _Routed
    if proxy is None:
        manager = _Routed(maxsize=16, timeout=_TIMEOUT)
        if not allow_private:
            manager.pool_classes_by_scheme = {"http": _HTTPPool, "https": _HTTPSPool}
    else:
        parts = parse_url(proxy)
        login = make_headers(proxy_basic_auth=unquote(parts.auth)) if parts.auth else {}
        bare = parts._replace(auth=None).url
        manager = _Proxied(bare, proxy_headers=login, maxsize=16, timeout=_TIMEOUT)
    manager.allow_private = allow_private
    return manager
