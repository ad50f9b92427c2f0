"""Every fusion that `init` offers, from files to the gate; and a baseline that is what the model is."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from orchestration.cli import main
from orchestration.examples.layout import write_template
from training.catalog import FUSIONS
from training.mlflow_store import client

pytestmark = pytest.mark.slow


def run(project: Path, *settings: str) -> tuple[dict, str]:
    options = [part for value in settings for part in ("--set", value)]
    result = CliRunner().invoke(main, ["run", str(project), "--json", *options])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout.splitlines()[-1]), result.stderr


def roles(home: Path) -> list[str]:
    store = client(f"sqlite:///{home / 'mlflow.db'}")
    runs = store.search_runs([store.get_experiment_by_name("tiny").experiment_id])
    return sorted(run.data.tags["triptych.role"] for run in runs)


def test_every_fusion_comes_to_a_champion(tiny: Path, home: Path, tmp_path: Path) -> None:
    """One after the other, as a person who tries them: concatenation after it was a baseline of the first."""
    offered = write_template(tmp_path / "new")[0].read_text()
    for number, fusion in enumerate(sorted(FUSIONS.names()), start=1):
        assert fusion in offered
        told, said = run(tiny, f"model.fusion={fusion}", "promotion.must_beat=[]")
        assert told["model"] == {"name": "tiny", "version": number, "aliases": ["challenger", "champion"]}, said
        assert ("concat" in said) == (fusion != "concat")
    trained = roles(home)
    assert trained.count("model") == len(FUSIONS.names())
    assert trained.count("concat") == 1, "it is the same whatever the model fuses by, so it is trained once"


def test_concatenation_is_judged_against_the_single_modalities_only(tiny: Path, home: Path) -> None:
    told, said = run(tiny, "model.fusion=concat", "promotion.must_beat=[champion, best_single_modality]")
    assert told["model"]["version"] == 1 and "challenger" in told["model"]["aliases"]
    assert "the best single modality" in said
    assert roles(home) == ["image", "model", "speech", "text"]
