"""Questions to web servers: tried again where that helps, with the token of a source, or a login from ~/.netrc."""

import contextlib
import netrc
import os
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

from urllib3.exceptions import HTTPError, ProxyError
from urllib3.util import Retry, make_headers, parse_url

from assets.remote_settings import RemoteSettings
from assets.sources.base import SourceError
from assets.web_connections import pools_of
from training.credentials import mask

FAILURES = 4  # in a row, before it is given up
BACKOFF_SECONDS = 0.25  # doubled each time
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")  # RFC 6750


class BrokenOffError(OSError):
    """An answer that began, and did not come to its end: worth asking for the rest."""


@contextlib.contextmanager
def asked(method: str, url: str, access: RemoteSettings, **headers: str) -> Iterator[Any]:
    """What a server answers, without having read it. Raises OSError, or SourceError (`PrivateAddressError`).

    What logs in is left out at a redirect to another host (urllib3 does so).
    """
    headers = {name.replace("_", "-"): value for name, value in headers.items()} | {"Accept-Encoding": "identity"}
    answer = None
    try:
        parts = parse_url(url)
        if parts.auth is None and access.token_env is not None:
            if parts.scheme != "https" and not access.allow_private:
                raise SourceError(
                    f"{mask(url)}: would get the token of {access.token_env} unencrypted: say https://, or "
                    "`allow_private: true` for a server of a private network"
                )
            headers["Authorization"] = f"Bearer {_token(access.token_env)}"
        elif login := unquote(parts.auth) if parts.auth else _login(parts.host or ""):
            headers |= make_headers(basic_auth=login)
        bare = parts._replace(auth=None, fragment=None).url
        answer = pools_of(bare, access.allow_private).request(
            method, bare, headers=headers, retries=_retries(), preload_content=False
        )
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
    reason, at = getattr(error, "reason", None) or error, ""
    if isinstance(reason, ProxyError):
        reason, at = reason.original_error, "the proxy of the environment: "
    return mask(at + (re.sub(r"^\w+\(host=[^)]*\): ", "", str(reason)) or type(reason).__name__))


def _token(name: str) -> str:
    """What the variable of the environment holds. Raises SourceError, which does not say it."""
    token = os.environ.get(name, "").strip()
    if not _TOKEN.fullmatch(token):
        why = "holds what no bearer token is written with" if token else "is not set"
        raise SourceError(f"token_env is {name}, and that variable of the environment {why}")
    return token


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
