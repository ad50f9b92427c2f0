"""An S3 server on loopback that keeps what is written."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SECRET = "xyzzy4242"


@contextmanager
def storing() -> Iterator[tuple[dict[str, str], Any]]:
    """The environment that its clients need, and a client of boto3; it has the bucket `bucket`."""
    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        url = "http://{}:{}".format(*server.get_host_and_port())
        signed = {"aws_access_key_id": "me", "aws_secret_access_key": SECRET}
        client = boto3.client("s3", endpoint_url=url, region_name="us-east-1", **signed)
        client.create_bucket(Bucket="bucket")
        keys = {name.upper(): value for name, value in signed.items()}
        yield keys | {"AWS_ENDPOINT_URL": url, "AWS_DEFAULT_REGION": "us-east-1", "AWS_ALLOW_HTTP": "true"}, client
    finally:
        server.stop()
