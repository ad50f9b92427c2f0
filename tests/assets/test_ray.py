"""The engine on a cluster of Ray: what nodes run and read, what is left when one of them or the run is killed, what is
said where there is none."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml

from assets import featurizing, pipeline
from assets.catalog import ENGINES
from assets.engines.base import Engine
from orchestration.project import ProjectError, load
from tests.assets.ray_cluster import add_node, clustered, gpus, where_from
from tests.training import tiny_encoders
from training.schema import tensor

ROOT = Path(__file__).parents[2]
MEASURED = '''
"""A filter that takes its time, and says where it has been."""

import os
import time
from dataclasses import dataclass
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from training.filters.base import Filter
from training.validation import FORBID_EXTRA


class MeasuredFilter(Filter):
    version = 1

    @dataclass(frozen=True, kw_only=True)
    class Options:
        __pydantic_config__ = FORBID_EXTRA
        folder: str = ""

    def measure(self, content):
        time.sleep(0.1)
        (Path(self.options.folder) / f"{time.time()} {os.getppid()}").touch()
        return float(content.array.mean())

    def keeps(self, value):
        return f"{value} > 0"

    def expected(self):
        return "any"
'''
FOREVER = """
from time import sleep
from assets.catalog import ENGINES
for _ in ENGINES.make(ENGINES.choose({"kind": "ray", "workers": 1})).map(sleep, iter([0.1] * 10**6)):
    print("done", flush=True)
"""


@pytest.fixture(scope="module")
def client_port(free_ports: Callable[[int], list[int]]) -> int:
    return free_ports(1)[0]


@pytest.fixture(scope="module")
def cluster(client_port: int) -> Iterator[Any]:
    with clustered(client_port) as cluster:
        yield cluster


def engine(**options: Any) -> Engine:
    return ENGINES.make(ENGINES.choose({"kind": "ray", **options}))


def data_side(path: Path, *overrides: str) -> tuple[str, str, dict[str, list[dict]]]:
    """Fingerprints of samples and dataset, and the rows of every table that a step writes."""
    project = load(path, overrides)
    lake = pipeline.open_lake(project)
    pipeline.write_manifest(lake, project)
    for modality in project.modalities:
        featurizing.process_modality(lake, project, modality)
    samples, dataset = pipeline.write_samples(lake, project), pipeline.write_dataset(lake, project)
    tables = [f"{kind.format(m)}" for m in project.modalities for kind in ("clean_{}", "{}_features")]
    order = {"measurements": "id, filter", "quarantine": "item_id, reason"}
    rows = {
        name: lake.sql(f"SELECT * FROM {name} ORDER BY {order.get(name, 'id')}").to_pylist()
        for name in (*tables, *order)
    }
    return samples.fingerprint, dataset.fingerprint, rows


@pytest.mark.slow
def test_a_killed_node_changes_nothing(cluster: Any, tiny: Path, tmp_path: Path) -> None:
    tiny_encoders.make("vit", tiny.parent / "vit")
    (tiny.parent / "measured_of_test.py").write_text(MEASURED)
    (seen := tmp_path / "seen").mkdir()
    document: Any = yaml.safe_load(tiny.read_text())
    document["sources"] = [source for source in document["sources"] if source["name"] != "recordings"]
    document["align"] = {"label": "answer"}
    document["features"]["image"] = {"kind": "embedding", "model": "vit", "tokens": 2}
    document["filters"] = {"image": {"kind": "measured_of_test:MeasuredFilter", "folder": str(seen)}}
    tiny.write_text(yaml.safe_dump(document))
    expected = data_side(tiny, "engine.kind=local", f"lake={tmp_path / 'local'}")
    for file in seen.iterdir():
        file.unlink()

    def kill_one() -> None:
        while not done.is_set() and (len(seen_by()) < 2 or sum(seen_by().values()) < 6):
            time.sleep(0.01)
        killed.append(sum(seen_by().values()))
        cluster.remove_node(cluster.list_all_nodes()[-1], allow_graceful=False)

    def seen_by() -> Counter[str]:
        """Node -> pictures that it has measured."""
        return Counter(file.name.split()[1] for file in seen.iterdir())

    killed, done = [], threading.Event()
    killer = threading.Thread(target=kill_one)
    killer.start()
    try:
        words = f"engine={{kind: ray, address: '{cluster.address}', batch_size: 2, shared_files: true}}"
        found = data_side(tiny, words, f"lake={tmp_path / 'ray'}")
    finally:
        done.set()
        killer.join()
        add_node(cluster)
    assert len(seen_by()) >= 2 and 6 <= killed[0] < 40, "in the middle"
    assert found[:2] == expected[:2]
    assert found[2].keys() == expected[2].keys()
    for name, rows in expected[2].items():
        if name != "image_features":
            assert found[2][name] == rows, name
    pairs = list(zip(found[2]["image_features"], expected[2]["image_features"], strict=True))
    assert len(pairs) == 47
    for mine, theirs in pairs:
        assert (mine["id"], mine["fingerprint"]) == (theirs["id"], theirs["fingerprint"])
        made, wanted = (tensor(row, "embedding", "float16").astype(np.float64) for row in (mine, theirs))
        np.testing.assert_allclose(made, wanted, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_steps_that_run_a_network_run_where_the_gpus_are(cluster: Any) -> None:
    node, on_cluster = add_node(cluster, num_gpus=1), engine(address=cluster.address)  # it has none, and says so
    assert set(on_cluster.suited(False, 9, None, runs_model=True).map(gpus, range(4))) == {"0"}
    cluster.remove_node(node)


@pytest.mark.slow
def test_a_machine_outside_the_cluster_asks_by_ray_client(cluster: Any, client_port: int) -> None:
    outside = engine(address=f"ray://127.0.0.1:{client_port}")
    assert list(outside.map(int, map(str, range(20)))) == list(range(20))
    with pytest.raises(ValueError, match="invalid literal"):
        list(outside.map(int, ["1", "x", "3"]))
    assert next(outside.map(abs, iter(range(10**9)))) == 0


@pytest.mark.slow
def test_nodes_import_our_code_beside_a_foreign_package(cluster: Any, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "__init__.py").write_text("raise SystemExit('foreign')")
    monkeypatch.chdir(tmp_path)
    (place,) = set(engine(address=cluster.address).map(where_from, range(3)))
    assert Path(place).read_text() == (ROOT / "training" / "family.py").read_text()
    assert not Path(place).is_relative_to(ROOT), "the nodes of a cluster have no checkout"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_cluster_ends_with_the_run_that_started_it(
    number: int, tmp_path: Path, processes_of: Callable[[Path], list[psutil.Process]]
) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TRIPTYCH_HOME": str(tmp_path)}
    run = subprocess.Popen([sys.executable, "-P", "-c", FOREVER], env=env, stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None and run.stdout.readline() == "done\n", "and nothing of Ray's on stdout"
    assert len(processes_of(tmp_path)) > 4
    run.send_signal(number)
    run.wait(30)
    run.stdout.close()
    until = time.monotonic() + 20
    while (left := processes_of(tmp_path)) and time.monotonic() < until:
        time.sleep(0.2)
    assert left == []


def test_what_does_not_answer_is_told_within_seconds(free_ports: Callable[[int], list[int]]) -> None:
    (port,) = free_ports(1)
    started = time.monotonic()
    with pytest.raises(ConnectionError, match=f"engine ray: nothing answers at 127.0.0.1:{port} .*: start the cluster"):
        list(engine(address=f"127.0.0.1:{port}").map(abs, [1]))
    with pytest.raises(ConnectionError, match=f"nothing answers at ray://127.0.0.1:{port}"):
        list(engine(address=f"ray://127.0.0.1:{port}").map(abs, [1]))
    assert time.monotonic() - started < 20


def test_what_is_no_cluster_is_told_within_seconds() -> None:
    started = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        place = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ConnectionError, match=f"nothing answers at {place} .timed out.: start the cluster"):
            list(engine(address=place).map(abs, [1]))
        with pytest.raises(ConnectionError, match=f"what answers at {place} is no Ray"), ThreadPoolExecutor(1) as pool:
            pool.submit(lambda: [silent.accept()[0].sendall(b"SSH-2.0-OpenSSH_9.2\r\n") for _ in range(2)])
            list(engine(address=place).map(abs, [1]))
    assert time.monotonic() - started < 20


def test_without_ray_the_extra_is_named(tiny: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # as where it is not installed
    project = load(tiny, ["engine=ray"])  # which can be read there, and asked for answers
    with pytest.raises(ValueError, match=r"needs Ray, which is not installed: pip install 'triptych\[ray\]'"):
        ENGINES.make(project.engine)


@pytest.mark.parametrize("address", ["cluster", "http://head:6379", "head:port", "ray://head"])
def test_an_address_has_a_port(tiny: Path, address: str) -> None:
    with pytest.raises(ProjectError, match=r"engine ray: address is '.*', expected null, auto, HOST:PORT"):
        load(tiny, [f"engine={{kind: ray, address: '{address}'}}"])


def test_nodes_read_what_lies_where_all_reach_it() -> None:
    places = "/data/a.png", "file:///data/a.png", "s3://bucket/a.png", "https://example.org/a.png"
    assert [engine(address="head:6379").reads(place) for place in places] == [False, False, True, True]
    assert all(engine(address="head:6379", shared_files=True).reads(place) for place in places)
    assert all(engine().reads(place) for place in places), "a cluster on this machine"


def test_a_step_refuses_to_run_with_other_packages_or_models(tiny: Path) -> None:
    step = featurizing.make_step(load(tiny), "image")
    state = step.__getstate__()
    step.__setstate__(dict(state))
    for other, words in (("pillow", "pillow is "), ("the model of PixelsFeaturizer", "PixelsFeaturizer is None on ")):
        with pytest.raises(RuntimeError, match=rf"{words}.* and 1\.0 where the run was started"):
            step.__setstate__(state | {"deciding": state["deciding"] | {other: "1.0"}})
