"""S3 and what speaks its language (MinIO, Ceph, R2, ...), by the client that is in pyarrow: no driver is needed.

That client tries again what the store refuses for a moment (503, 500) or breaks off, each time after a longer wait, and
looks for credentials as Amazon's own tools do: environment, ~/.aws, the role of the machine; without any, it asks as
anybody. Its listing lacks the etags of objects: where boto3 is installed, that one lists.
"""

import importlib.util
import os
import threading
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any, BinaryIO

import pyarrow.fs as pa_fs
from fsspec.implementations.arrow import ArrowFSWrapper

from assets.range_file import RangeFile
from assets.remote_settings import RemoteSettings
from assets.storage import Bytes

SCHEMES = ("s3", "s3a")
_PIECE = 8 * 2**20  # of one request
_ATTEMPTS = 5
_MARKS = 0xA7, 0x5C  # what few files end with
_CONNECT_SECONDS, _SECONDS = 10.0, 60.0


def object_store(url: str, access: RemoteSettings) -> "tuple[ObjectStore, str]":
    """The store of a URL, and the path in it: bucket/key. Raises OSError: its region cannot be asked for."""
    path = ObjectStore._strip_protocol(url)
    endpoint = access.endpoint_url or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return _store(endpoint, None if endpoint else path.partition("/")[0]), path


@lru_cache
def _store(endpoint: str | None, bucket: str | None) -> "ObjectStore":
    """Of an endpoint; without one, of Amazon's region that the bucket lies in."""
    where = {"endpoint_override": endpoint} if endpoint else {"region": pa_fs.resolve_s3_region(bucket)}
    store = ObjectStore(
        pa_fs.S3FileSystem(
            **where,
            connect_timeout=_CONNECT_SECONDS,
            request_timeout=_SECONDS,
            retry_strategy=pa_fs.AwsStandardS3RetryStrategy(max_attempts=_ATTEMPTS),
        )
    )
    store.endpoint = endpoint
    return store


class ObjectStore(ArrowFSWrapper):
    """As fsspec wants a file system. Where a store does not answer, it is an error, never "not there"."""

    cachable = False
    endpoint: str | None = None

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return (path.partition("://")[2] if "://" in path else path).rstrip("/")

    def find(
        self, path: str, maxdepth: int | None = None, withdirs: bool = False, detail: bool = False, **_: Any
    ) -> Iterable[str]:
        """All objects below a path, by one request for a thousand."""
        path = self._strip_protocol(path)
        if (client := _client(self.endpoint, self.fs.region)) is not None:
            found = dict(_listed(client, *path.partition("/")[::2], is_deep=maxdepth != 1))
        else:
            selector = pa_fs.FileSelector(path, allow_not_found=True, recursive=maxdepth != 1)
            infos = [info for info in self.fs.get_file_info(selector) if withdirs or info.is_file]
            found = {info.path: self._make_entry(info) for info in infos}
        return found if detail else list(found)

    def etag(self, path: str) -> str | None:
        """Of one object: a request of its own."""
        with self.fs.open_input_file(path) as file:
            etag = (file.metadata() or {}).get("ETag")
        return None if etag is None else etag.decode()


@lru_cache
def _client(endpoint: str | None, region: str) -> Any:
    """boto3's, which asks as pyarrow's does; null where it is not installed."""
    if importlib.util.find_spec("boto3") is None:
        return None
    import boto3
    from botocore import UNSIGNED
    from botocore.config import Config

    session = boto3.Session(region_name=region)
    config = Config(
        connect_timeout=_CONNECT_SECONDS,
        read_timeout=_SECONDS,
        retries={"total_max_attempts": _ATTEMPTS, "mode": "standard"},
        s3={"addressing_style": "path" if endpoint else "auto"},
        signature_version=None if session.get_credentials() else UNSIGNED,
        proxies={},  # not those of the environment, which pyarrow does not ask either
    )
    return session.client("s3", endpoint_url=endpoint, config=config)


def _listed(client: Any, bucket: str, folder: str, is_deep: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """Path and facts of each object below a folder, or right in it, as fsspec has them."""
    where = {"Bucket": bucket, "Prefix": f"{folder}/" if folder else ""} | ({} if is_deep else {"Delimiter": "/"})
    try:
        for page in client.get_paginator("list_objects_v2").paginate(**where):
            for found in page.get("Contents", ()):
                if not found["Key"].endswith("/"):  # what marks a folder
                    path = f"{bucket}/{found['Key']}"
                    facts = {"size": found["Size"], "mtime": found["LastModified"], "ETag": found.get("ETag")}
                    yield path, {"name": path, "type": "file", **facts}
    except client.exceptions.NoSuchBucket:
        return


class ObjectBytes(Bytes):
    """An object; a request when it is opened, in each thread, and one for each part that is read."""

    piece = _PIECE

    def __init__(self, url: str, access: RemoteSettings) -> None:
        self._store, self._path = object_store(url, access)
        self._own = threading.local()  # each thread has a place of its own in it
        self._size = self._opened().size()

    @property
    def size(self) -> int:
        return self._size

    def read(self, offset: int, size: int) -> bytes:
        size = min(size, self._size - offset)
        if size <= 0:
            return b""
        part = bytearray(size)
        for attempt in range(_ATTEMPTS):
            # pyarrow does not tell how much came: a store that gives half, and says that this is all, would leave the
            # rest as it was before. So the last byte is, and no content has this one and then the other.
            part[-1] = mark = _MARKS[attempt % 2]
            self._opened().seek(offset)
            self._opened().readinto(part)
            if part[-1] != mark:
                return bytes(part)
        raise OSError(f"the store gave less than the {size} bytes from {offset} on that it was asked for")

    def _opened(self) -> Any:
        if not hasattr(self._own, "file"):
            self._own.file = self._store.fs.open_input_file(self._path)
        return self._own.file

    def close(self) -> None:
        """Nothing is kept open but connections, which others use, too."""


def open_object(url: str, access: RemoteSettings) -> BinaryIO:
    content = ObjectBytes(url, access)
    return RangeFile.open(content, content.size)
