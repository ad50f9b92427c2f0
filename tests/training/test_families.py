"""The catalogue: what it names is there, what it does not name is refused, options are checked where they are read."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from training import catalog, family
from training.catalog import FILTERS, FUSIONS
from training.family import Choice, Family, identity, own_module
from training.settings import ModelSettings
from training.validation import from_dict, to_dict

ROOT = Path(__file__).parents[2]
FAMILIES = {name: value for name, value in vars(catalog).items() if isinstance(value, Family)}


def members() -> list[tuple[str, str, str | None]]:
    """Family, kind and scope of everything in the catalogue."""
    return [
        (name, kind, scope)
        for name, family in FAMILIES.items()
        for scope in ([s for s, v in family.kinds.items() if isinstance(v, dict)] or [None])
        for kind in family.names(scope)
    ]


@pytest.mark.parametrize(("family", "kind", "scope"), members())
def test_every_kind_is_a_class_in_a_file_of_its_name(family, kind, scope):
    cls = FAMILIES[family].load(kind, scope)
    words = "".join(part.capitalize() for part in kind.split("_"))
    assert cls.__name__.startswith(words)
    assert cls.__module__.rpartition(".")[2].rstrip("_") == kind
    base = importlib.import_module(f"{cls.__module__.rpartition('.')[0]}.base")
    folder = cls.__module__.split(".")[1]
    singular = folder.removesuffix("ies") + "y" if folder.endswith("ies") else folder.removesuffix("s")
    contract = next(value for name, value in vars(base).items() if name.lower() == singular)
    assert issubclass(cls, contract)
    assert FAMILIES[family].choose(kind, scope) == FAMILIES[family].choose({"kind": kind}, scope) == Choice(kind)


def test_every_file_of_a_family_is_in_the_catalogue():
    listed = {FAMILIES[f].load(kind, scope).__module__ for f, kind, scope in members()}
    folders = {module.rpartition(".")[0] for module in listed}
    for folder in folders:
        found = {f"{folder}.{path.stem}" for path in (ROOT / folder.replace(".", "/")).glob("*.py")}
        helpers = {f"{folder}.{name}" for name in ("__init__", "base", "linear", "options", "string")}
        assert found - helpers <= listed


def test_names_options_and_values_that_are_not_there_are_named():
    with pytest.raises(ValueError, match="fusion is 'gate', expected one of weighted, concat"):
        FUSIONS.choose("gate")
    with pytest.raises(ValueError, match="did you mean attention"):
        FUSIONS.choose("atention")
    with pytest.raises(ValueError, match="fusion concat has no option 'layers'; it has no options"):
        FUSIONS.choose({"kind": "concat", "layers": 2})
    with pytest.raises(ValueError, match="did you mean least"):
        FILTERS.choose({"kind": "duration", "leest": 2}, "speech")
    with pytest.raises(ValueError, match=r"filter duration: least is 'short'"):
        FILTERS.choose({"kind": "duration", "least": "short"}, "speech")
    with pytest.raises(ValueError, match=r"filter duration: least is 3\.0, expected at most"):
        FILTERS.choose({"kind": "duration", "least": 3, "most": 2}, "speech")
    with pytest.raises(ValueError, match="cannot be imported"):
        FUSIONS.load("no_such_module:Fusion")
    with pytest.raises(ValueError, match=r"fusion is 3, expected one of"):
        FUSIONS.choose(3)


def test_what_is_default_is_not_part_of_a_choice():
    assert FILTERS.choose({"kind": "duration", "least": None}, "speech") == Choice("duration")
    chosen = FILTERS.choose({"kind": "duration", "least": "2"}, "speech")
    assert (chosen, chosen.plain(), str(chosen)) == (
        Choice("duration", {"least": 2.0}),
        {"kind": "duration", "least": 2.0},
        "duration least=2.0",
    )
    model = ModelSettings(fusion={"kind": "concat"})  # type: ignore[arg-type]
    assert from_dict(ModelSettings, to_dict(model)) == model and to_dict(model)["fusion"] == "concat"


def test_a_users_own_kind_is_known_by_its_code(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mine_of_test.py").write_text("class Mine:\n    pass\n")
    kind = "mine_of_test:Mine"
    assert own_module(kind) == tmp_path / "mine_of_test.py" and own_module("concat") is None
    before = identity(Choice(kind))
    (tmp_path / "mine_of_test.py").write_text("class Mine:\n    changed = True\n")
    assert identity(Choice(kind)) == before  # a process imports it once
    family._code_digest.cache_clear()  # as in a new process
    assert identity(Choice(kind)) != before
    assert FUSIONS.load(kind).__name__ == "Mine"


def test_choosing_kinds_imports_nothing_heavy():
    code = """
import sys
from training.catalog import ENCODERS, FEATURIZERS, FILTERS, FUSIONS
FUSIONS.choose("attention"), ENCODERS.choose("small_cnn", "grid")
FEATURIZERS.choose({"kind": "mfcc", "mels": 30}, "speech"), FILTERS.choose({"kind": "size", "least": 3}, "image")
print([m for m in ("torch", "transformers", "mlflow", "duckdb") if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
