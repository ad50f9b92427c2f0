"""A user's own kinds: they train anew when their code changes, and travel with the model that they are part of."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from training import family, model_registry, tracking
from training.catalog import ENCODERS
from training.evaluate import judged_answers
from training.family import Choice
from training.features import FeatureSettings
from training.job import check_labels
from training.settings import MediaLimits, ModelSettings, TrainingSettings, complete
from training.spec import own_code, plan_runs

KINDS = {"fusion": "travelling:OwnFusion", "output": "travelling_package.outputs:OwnOutput"}


@pytest.fixture
def travelling(own_kinds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of two modules of a user's, on the path: a file and a package."""
    folder = tmp_path / "of_a_user"
    (folder / "travelling_package").mkdir(parents=True)
    (folder / "travelling_package" / "__init__.py").touch()
    for name in ("travelling.py", "travelling_package/outputs.py"):
        shutil.copyfile(own_kinds, folder / name)
    monkeypatch.syspath_prepend(folder)
    for name in ("travelling", "travelling_package", "travelling_package.outputs"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return folder


def test_the_files_that_a_model_needs_are_named_once(travelling: Path) -> None:
    own: Any = {**KINDS, "encoders": {"image": encoder("travelling:OwnGridEncoder")}}
    settings = ModelSettings(**own)
    file, package = travelling / "travelling.py", travelling / "travelling_package"
    ours, theirs = FeatureSettings(), FeatureSettings(image="travelling:OwnFeaturizer")
    assert own_code(settings, ours) == [file, package]
    assert own_code(ModelSettings(), theirs) == [file]
    assert own_code(ModelSettings(), ours) == []


def test_a_featurizer_that_inherits_from_ours_does_not_share_our_rows(tmp_path: Path, monkeypatch: Any) -> None:
    from training.processor import Processor

    (tmp_path / "inherited_of_test.py").write_text(
        "from training.featurizers.log_mel import LogMelFeaturizer\n\n\nclass Own(LogMelFeaturizer):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    kinds = ("log_mel", "mfcc", "inherited_of_test:Own")
    keys = [Processor(FeatureSettings(speech=kind), MediaLimits()).fingerprint("speech", "mfcc") for kind in kinds]
    assert keys[0] == keys[1] != keys[2], "ours of one recipe share what is stored"


def test_features_of_a_form_of_its_own_need_an_encoder_of_their_own() -> None:
    with pytest.raises(ValueError, match=r"no encoder here reads features of the form graph: name one as model\.enc"):
        complete(ModelSettings(), {"image": "graph"})
    theirs = ModelSettings(encoders={"image": Choice("own_kinds:OwnGridEncoder")})
    assert complete(theirs, {"image": "graph"}).encoders["image"].kind == "own_kinds:OwnGridEncoder"


def test_labels_are_checked_before_anything_is_trained(own_kinds: Path) -> None:
    splits = {"train": ["7", None], "test": ["seven"]}
    with pytest.raises(ValueError, match="the label 'seven' in split test is none of output own_kinds:OwnOutput"):
        check_labels(Choice("own_kinds:OwnOutput"), splits)


def encoder(kind: Any) -> Choice:
    return ENCODERS.choose(kind, "grid")


@pytest.mark.parametrize("name", ["fusion", "output", "encoder", "objective"])
def test_changed_code_trains_anew(travelling: Path, name: str) -> None:
    def fingerprint() -> str:
        family._code_digest.cache_clear()  # as in a new process, which imports anew
        own: Any = {name: KINDS[name]} if name in KINDS else {}
        if name == "encoder":
            own = {"encoders": {"image": encoder("travelling:OwnGridEncoder")}}
        objectives: Any = ("answer", "travelling:OwnObjective") if name == "objective" else ("answer",)
        training = TrainingSettings(objectives=objectives)
        return plan_runs(ModelSettings(**own), training, FeatureSettings(), ["image"], "d")[0].fingerprint

    before = fingerprint()
    assert fingerprint() == before
    file = travelling / ("travelling_package/outputs.py" if name == "output" else "travelling.py")
    file.write_text(file.read_text() + "\n# changed\n")
    assert fingerprint() != before


@pytest.mark.slow
def test_the_model_answers_without_the_users_folder(
    travelling: Path, make_spec: Callable[..., Any], make_model: Callable[..., Any], rows: Any, tokenizer: Any
) -> None:
    from training.processor import Processor
    from training.score import answer_rows

    spec, run = make_spec("travelling")
    sections = spec.features.plain()
    features = FeatureSettings(**sections | {"image": {"kind": "travelling:OwnFeaturizer", **sections["image"]}})
    spec, run = replace(spec, features=features), replace(run, model=replace(run.model, **KINDS))
    model, batch = make_model(rows, **KINDS)
    expected = model.eval().answer(batch, tokenizer)
    bundle = travelling.parent / "bundle"
    for part in (model, tokenizer, Processor(features, MediaLimits())):
        part.save_pretrained(bundle)
    with tracking.open_run(spec, run):
        version = model_registry.log_model(spec, run, bundle)
    logged = model_registry.fetch_model(spec.tracking_uri, "travelling", version)
    code = {str(path.relative_to(logged / "code")) for path in (logged / "code").rglob("*.py")}
    assert {"training/model.py", "travelling.py", "travelling_package/outputs.py"} <= code
    sys.path.remove(str(travelling))
    shutil.rmtree(travelling)

    example = model_registry.example_row(FeatureSettings(), {})
    table = pa.table({"sample_id": ["a", "b"], "label": ["7", "8"], "text": [example["text"]] * 2})
    answers = answer_rows(logged, table.to_reader())
    judged = judged_answers(table.append_column("subset", pa.array(["text"] * 2)), answers, model.output)
    assert answers.schema.field("prediction").type == judged.schema.field("label").type == pa.float64()
    assert judged["label"].to_pylist() == [7.0, 8.0]
    assert judged["prediction"].equals(answers["prediction"])
    assert answers["prediction"].to_pylist() == pytest.approx([expected[0]] * 2, abs=1e-3)
    assert served(logged, example["text"]) == pytest.approx(expected[0], abs=1e-3)


def served(logged: Path, text: str) -> float:
    """The answer of MLflow's pyfunc in a fresh process."""
    script = (
        "import json, sys, mlflow, pandas\n"
        f"model = mlflow.pyfunc.load_model({str(logged)!r})\n"
        f"(row,) = model.predict(pandas.DataFrame([{{'text': {text!r}}}])).to_dict('records')\n"
        "kind = model.metadata.get_output_schema().input_dict()['prediction'].type.name\n"
        "modules = [sys.modules[name].__file__ for name in ('training', 'travelling', 'travelling_package.outputs')]\n"
        "print(json.dumps([row['prediction'], kind, modules]))"
    )
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-P", "-B", "-c", script]
    done = subprocess.run(command, env=env, cwd=logged, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    prediction, kind, modules = json.loads(done.stdout.splitlines()[-1])
    assert kind == "double" and all(Path(module).is_relative_to(logged) for module in modules)
    return float(prediction)
