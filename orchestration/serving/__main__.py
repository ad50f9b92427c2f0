"""See `orchestration.serving.app`."""

import argparse
import json
import os
from pathlib import Path

import uvicorn

from orchestration.serving.app import ARGUMENTS, Connection, Limits

_STOP_SECONDS = 10  # for the requests under way when the server is asked to stop


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m orchestration.serving", description="Serves a logged model.")
    parser.add_argument("model", type=Path, help="folder of the logged model")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=5001)
    parser.add_argument("--workers", type=int, default=1, help="processes, each with the model")
    parser.add_argument("--batch", type=int, default=Limits.batch, help="rows that are answered together")
    arguments = parser.parse_args()
    os.environ[ARGUMENTS] = json.dumps({**vars(arguments), "model": str(arguments.model.resolve())})
    threads = max(1, (os.cpu_count() or 1) // arguments.workers)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # else the workers would be in each other's way
    uvicorn.run(
        "orchestration.serving.app:from_environment",
        factory=True,
        host=arguments.host,
        port=arguments.port,
        workers=arguments.workers,
        http=Connection,
        ws="websockets-sansio",
        ws_max_size=Limits.body_bytes,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=_STOP_SECONDS,
        server_header=False,
        proxy_headers=False,
    )


if __name__ == "__main__":
    main()
