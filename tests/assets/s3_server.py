"""An S3 server on loopback that keeps what is written."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SECRET = "xyzzy4242"


@contextmanager
def storing() -> Iterator[tuple[dict[str, str], Any]]:
    """The environment that its clients need, and a client of boto3; it has the bucket `bucket`.

    A process of its own: delta-rs holds Python's lock while it waits for an answer.
    """
    import boto3

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until, url = time.monotonic() + 60, f"http://127.0.0.1:{port}"
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                assert server.poll() is None and time.monotonic() < until, "moto's server did not start"
                time.sleep(0.1)
        signed = {"aws_access_key_id": "me", "aws_secret_access_key": SECRET}
        client = boto3.client("s3", endpoint_url=url, region_name="us-east-1", **signed)
        client.create_bucket(Bucket="bucket")
        keys = {name.upper(): value for name, value in signed.items()}
        yield keys | {"AWS_ENDPOINT_URL": url, "AWS_DEFAULT_REGION": "us-east-1", "AWS_ALLOW_HTTP": "true"}, client
    finally:
        server.kill()
        server.wait()
