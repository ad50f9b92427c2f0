"""A cluster of Ray on this machine, a head without cores and two nodes of one core each; and what they are asked."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_STORE = {"object_store_memory": 100 * 2**20}
_HEALTH = {"health_check_period_ms": 1000, "health_check_failure_threshold": 5}  # by itself it waits half a minute


@contextmanager
def clustered(client_port: int | None = None) -> Iterator[Any]:
    """A `ray.cluster_utils.Cluster`, which Ray Client reaches at `client_port`."""
    for name, value in {"USAGE_STATS_ENABLED": "0", "AUTH_MODE": "token", "AUTH_TOKEN": secrets.token_hex()}.items():
        os.environ.setdefault(f"RAY_{name}", value)  # for as long as this process lives: Ray reads them once
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "num_gpus": 0, "include_dashboard": False, "ray_client_server_port": client_port}
    head |= {"_system_config": _HEALTH, **_STORE}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(2):
            add_node(cluster)
        yield cluster
    finally:
        cluster.shutdown()


def add_node(cluster: Any, num_gpus: int = 0) -> Any:
    return cluster.add_node(num_cpus=1, num_gpus=num_gpus, **_STORE)


def gpus(_: int) -> str | None:
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def where_from(_: int) -> str:
    import training.family

    return training.family.__file__
