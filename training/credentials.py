"""Passwords stay in the environment: no URI that is kept or shown has one, and what others say of one is masked."""

import os
import re
from urllib.parse import unquote, urlsplit

MASK = "***"  # what stands where something was cut

# Each looks at a character a fixed number of times: a log may have lines without end.
_USER = re.compile(r"([a-z0-9+.-]://)[^\s/?#'\"<>]*@", re.IGNORECASE)
_PASSWORD = re.compile(r"[a-z0-9+.-]://[^\s/?#'\"<>:@]*:[^\s/?#'\"<>]*@", re.IGNORECASE)
_NAMED = re.compile(
    r"((?:password|passwd|secret|access_key|token|signature)(?:=|['\"]\s*:\s*)['\"]?)[^\s'\"&,;})]+", re.IGNORECASE
)
# In a query, what signs a URL (of Amazon, Google, Azure, Alibaba, CloudFront) and how long that holds.
_SIGNED = re.compile(
    r"([?&](?:x-(?:amz|goog|oss)-[a-z0-9-]+|(?:aws|oss)accesskeyid|googleaccessid|key-pair-id|policy|expires|sig|se|st|"
    r"api[_-]?key|jwt|auth)=)[^\s&'\"<>,;)}\]]+",
    re.IGNORECASE,
)
_SECRET_QUERY = re.compile(
    r"://[^\s'\"<>]*[?&](?:[^\s=&]*(?:password|passwd|secret|access_key|token|signature)|sig|api[_-]?key|jwt|auth)=[^*]",
    re.IGNORECASE,
)


def mask(text: str) -> str:
    """The text without user and password of the URIs in it, without what signs them, and without what is called a
    secret (``password=...``)."""
    return _SIGNED.sub(r"\1***", _NAMED.sub(r"\1***", _USER.sub(r"\1***@", text)))


def is_signed(text: str) -> bool:
    """Whether the text is or holds a URL whose query is a secret: whoever has it may read what it names."""
    return _SECRET_QUERY.search(text) is not None


def mask_urls(text: str) -> str:
    """As `mask`, where a URL in the text has a password or is signed; else as it is, what is masked already too."""
    return mask(text) if "://" in text and (has_password(text) or is_signed(text)) else text


def has_password(text: str) -> bool:
    """Whether the text is or holds a URI with a password."""
    return _PASSWORD.search(text) is not None


def to_environment(uri: str) -> str:
    """The URI without its password, which goes to where MLflow's client, or that of PostgreSQL, looks for it.

    Raises:
        ValueError: the password of another kind of URI would have to stay in it.
    """
    if not has_password(uri):
        return uri
    parts = urlsplit(uri)
    scheme, password = parts.scheme.partition("+")[0], unquote(parts.password or "")
    if scheme in ("http", "https"):
        os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(parts.username or "")
        os.environ["MLFLOW_TRACKING_PASSWORD"] = password
        return _USER.sub(r"\1", uri, count=1)
    if scheme in ("postgresql", "postgres"):
        os.environ["PGPASSWORD"] = password
        return _USER.sub(rf"\g<1>{parts.username}@", uri, count=1)
    raise ValueError(
        f"{mask(uri)} holds a password, which MLflow would write down: serve that store by `mlflow server`"
    )
