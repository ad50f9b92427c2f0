"""Clean and features of photos on two nodes of Ray, beside one, and on this machine's threads, beside the same one.

    python -m benchmarks.engines [--quick] [--items 4000]

Each node is a raylet with processes of its own on this machine, of one core and one worker; a head without cores holds
the cluster together. The photos are JPEG of 2048 x 1536, made here, to 224 x 224 pixels. Each repetition has a lake of
its own and a process of its own, which connects, hands out the batches, and writes what comes back: seconds from there
to the last commit, without the manifest. Two nodes need two cores that nobody else uses. `rows` are the feature rows,
`speedup` is the reference's seconds over ours. --data is not used.
"""

import io
import os
import secrets
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from assets import featurizing, pipeline
from benchmarks import measure
from orchestration.project import load

_SIZE = 2048, 1536
_PICTURES = 16  # that differ; all else of a file differs by a comment
_STORE_BYTES = 200 * 2**20  # shared memory of a node
_PROJECT = """
name: engines
sources: [{name: photos, modality: image, files: photos}]
align: {label: key}
features: {image: {size: 224}}
"""


def write_photos(folder: Path, items: int) -> None:
    folder.mkdir()
    random, pictures = np.random.default_rng(0), []
    for _ in range(_PICTURES):
        coarse = Image.fromarray(random.integers(0, 256, (48, 64, 3), np.uint8))
        encoded = io.BytesIO()
        coarse.resize(_SIZE, Image.Resampling.BICUBIC).save(encoded, "JPEG", quality=90)
        pictures.append(encoded.getvalue())
    for n in range(items):
        picture = pictures[n % _PICTURES]
        comment = b"\xff\xfe" + (10).to_bytes(2) + n.to_bytes(8)
        (folder / f"{n:06d}.jpg").write_bytes(picture[:2] + comment + picture[2:])


@contextmanager
def cluster(nodes: int) -> Iterator[str]:
    """The address of a new one."""
    from ray.cluster_utils import Cluster

    size = {"object_store_memory": _STORE_BYTES}
    started = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **size})
    try:
        for _ in range(nodes):
            started.add_node(num_cpus=1, **size)
        yield started.address
    finally:
        started.shutdown()


def run(project_file: Path, lake: Path, engine: str) -> dict[str, float]:
    project = load(project_file, [f"lake={lake}", f"engine={engine}"])
    tables = pipeline.open_lake(project)
    pipeline.write_manifest(tables, project)
    started = time.perf_counter()
    featurizing.process_modality(tables, project, "image")
    seconds = time.perf_counter() - started
    rows = tables.sql("SELECT count(*) AS n FROM image_features")["n"][0].as_py()
    return {"s": seconds, "rows": rows, "memory": measure.peak_mb()}


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--items", type=int, default=4_000)
    arguments = parser.parse_args()
    items = 40 if arguments.quick else arguments.items
    for name, value in {"USAGE_STATS_ENABLED": "0", "AUTH_MODE": "token", "AUTH_TOKEN": secrets.token_hex()}.items():
        os.environ.setdefault(f"RAY_{name}", value)
    with tempfile.TemporaryDirectory() as temporary:
        project_file = Path(temporary) / "project.yaml"
        project_file.write_text(_PROJECT)
        write_photos(Path(temporary) / "photos", items)
        one, two, local = "one node of Ray", "two nodes of Ray", "threads"
        runs: dict[str, list[dict[str, float]]] = {one: [], two: [], local: []}
        for n in range(measure.repetitions(arguments)):
            for name in runs:
                lake = Path(temporary) / f"{name} {n}"
                if name == local:
                    runs[name].append(_apart(project_file, lake, "threads"))
                    continue
                with cluster(1 + (name == two)) as address:
                    engine = f"{{kind: ray, address: '{address}', shared_files: true}}"
                    runs[name].append(_apart(project_file, lake, engine))
    for name in (two, local):
        ours, reference = ([result["s"] for result in runs[which]] for which in (name, one))
        memory = [max(result["memory"] for result in runs[which]) for which in (name, one)]
        speedup = round(float(np.median(reference) / np.median(ours)), 3)
        rows = [result["rows"] for result in (*runs[name], *runs[one])]
        measure.tell(
            ("engines", f"{items:,} photos, {name}"), "s", ours, one, reference, memory, rows=rows, speedup=speedup
        )


def _apart(project_file: Path, lake: Path, engine: str) -> dict[str, float]:
    with measure.Side() as side:
        return side(run, project_file, lake, engine)


if __name__ == "__main__":
    main()
