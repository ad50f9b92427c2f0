"""What of samples a model's answers hang on, as pictures: asked of a registered version, in a process of its own."""

import json
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assets import pipeline
from assets.gate import write_raw
from assets.settings import Project
from training.files import write_bytes


@dataclass(frozen=True)
class Explained:
    """What a version answers to a sample, and where the picture lies that says why."""

    sample: str
    version: str
    prediction: str | None
    probability: float | None
    how: dict[str, str]  # modality -> the method
    picture: str | None  # its path
    error: str | None = None  # why there is none


def explain_samples(project: Project, version: str, samples: Sequence[str], folder: Path) -> list[Explained]:
    """Maps of samples of the present snapshot, as pictures in a folder.

    Raises:
        ValueError: there is no such sample, or the version's code knows no explanations.
    """
    from training.model_registry import local_model
    from training.score import score_command

    lake = pipeline.open_lake(project)
    listed = lake.sql("SELECT sample_id, split FROM samples WHERE sample_id IN (SELECT unnest($ids))",
                      {"ids": list(samples)}).to_pylist()  # fmt: skip
    splits = {row["sample_id"]: row["split"] for row in listed}
    if unknown := [name for name in samples if name not in splits]:
        raise ValueError(f"{project.name} has no sample {unknown[0]!r}: `triptych sql` lists sample_id of samples")
    model = local_model(project.mlflow_uri, project.name, version, project.folder / "cache")
    found = []
    with tempfile.TemporaryDirectory() as temporary:
        for split in sorted(set(splits.values())):
            wanted, place = [name for name in samples if splits[name] == split], Path(temporary) / split
            place.mkdir()
            rows = place / "rows.parquet"
            write_raw(lake, rows, split, project.make_sources(), [project.inputs], project.limits, wanted)
            command, environment = score_command(model, rows, place, "training.explain")
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                last = (done.stderr.strip().splitlines() or ["no word of why"])[-1]
                raise ValueError(f"version {version} of {project.name} cannot explain its answers: {last}")
            for told in json.loads((place / "explained.json").read_text()):
                found.append(_kept(told, version, place, folder))
    return found


def _kept(told: dict[str, Any], version: str, place: Path, folder: Path) -> Explained:
    """With its picture where it is to lie, named after the sample."""
    sample, path = told["sample_id"], None
    if told["error"] is None:
        name = "".join(c if c.isalnum() or c in "-_." else "_" for c in sample)
        path = folder / f"{name}.png"
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes(path, (place / told["picture"]).read_bytes())
    answer = told.get("prediction"), told.get("probability"), told.get("how", {})
    return Explained(sample, version, *answer, None if path is None else str(path), told["error"])
