"""Every fusion that `init` offers, from files to the gate; and a baseline that is what the model is.

A run costs many times what such a small training does. So three kinds, of which each takes its own way through the
model, are run as a person would; the others are trained by the trainer and judged by the gate on the same data, here.
"""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from assets import pipeline
from assets.gate import gate
from assets.model_assets import job_spec
from orchestration.cli import main
from orchestration.examples.layout import write_template
from orchestration.project import load
from training.catalog import FUSIONS
from training.job import run_all
from training.mlflow_store import client

pytestmark = [pytest.mark.slow, pytest.mark.soak]  # each fusion has tests of its own

RUN = ["concat", "{kind: bottleneck, layers: 1}", "logit"]
LAUNCHERS = ["{kind: torchrun, processes: 2}", "subprocess"]
SETTINGS = ["promotion.must_beat=[]", "training.parallel=1"]
CONTEXT: Any = SimpleNamespace(run=SimpleNamespace(run_id="of_test"), log=SimpleNamespace(info=print))


def run(project: Path, *settings: str, select: str = "+champion") -> tuple[dict, str]:
    options = [part for value in settings for part in ("--set", value)]
    result = CliRunner().invoke(main, ["run", str(project), "--json", "--select", select, *options])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout.splitlines()[-1]), result.stderr


def roles(home: Path) -> list[str]:
    store = client(f"sqlite:///{home / 'mlflow.db'}")
    runs = store.search_runs([store.get_experiment_by_name("tiny").experiment_id])
    return sorted(run.data.tags["triptych.role"] for run in runs)


def test_every_fusion_comes_to_a_champion(tiny: Path, home: Path, tmp_path: Path) -> None:
    """One after the other, as a person who tries them."""
    offered = write_template(tmp_path / "new")[0].read_text()
    assert all(fusion in offered for fusion in FUSIONS.names())
    told, said = run(tiny, "model.fusion=concat", "promotion.must_beat=[champion, best_single_modality]")
    assert told["model"]["version"] == 1 and "challenger" in told["model"]["aliases"]
    assert "the best single modality" in said
    assert roles(home) == ["image", "model", "speech", "text"], "concatenation is no rival of itself"
    for number, (fusion, launcher) in enumerate(zip(RUN[1:], LAUNCHERS, strict=True), start=2):
        settings = f"model.fusion={fusion}", f"launcher={launcher}", *SETTINGS
        told, said = run(tiny, *settings, select="baselines,model+")
        assert told["model"] == {"name": "tiny", "version": number, "aliases": ["challenger", "champion"]}, said
        assert "concat" in said
    tried = [FUSIONS.choose(load(tiny, [f"model.fusion={fusion}"]).model.fusion).kind for fusion in RUN]
    for number, fusion in enumerate(sorted({*FUSIONS.names()} - {*tried}), start=len(RUN) + 1):
        project = load(tiny, [f"model.fusion={fusion}", *SETTINGS])
        plan = [spec for spec in pipeline.plan(project) if spec.name != "concat"]
        run_all(job_spec(CONTEXT, project, tuple(plan)), print, print)
        verdict = gate(CONTEXT, project)
        assert (verdict.version, verdict.champion, verdict.aliases) == (number, str(number), ["challenger", "champion"])
    trained = roles(home)
    assert trained.count("model") == len(FUSIONS.names())
    assert trained.count("concat") == 1, "it is the same whatever the model fuses by, so it is trained once"
