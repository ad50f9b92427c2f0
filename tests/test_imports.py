"""Imports go one way, and the heavy ones stay out of what must start at once. Each proof is a fresh process."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for package in ("training", "assets", "orchestration")
    for path in (ROOT / package).rglob("*.py")
    if path.stem != "__init__"
)


def loaded_by(code: str, cwd: Path = ROOT) -> set[str]:
    """The modules that are loaded after `code` has run in a fresh Python."""
    script = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}\nprint('\\n'.join(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-P", "-c", script], cwd=cwd, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.slow
@pytest.mark.parametrize("package", ["training", "assets"])
def test_imports_go_one_way(package):
    imports = "\n".join(f"import {name}" for name in MODULES if name.startswith(package + "."))
    above = {"training": ("assets", "orchestration", "dagster"), "assets": ("orchestration",)}[package]
    assert not {name for name in loaded_by(imports) if name.split(".")[0] in above}


def test_the_code_location_loads_without_torch_and_mlflow(tmp_path):
    code = f"import os; os.environ['TRIPTYCH_HOME'] = {str(tmp_path)!r}\n"
    code += "from orchestration.definitions import definitions; definitions()"
    assert not {"torch", "mlflow", "transformers"} & loaded_by(code)


def test_the_command_line_starts_light():
    heavy = {"dagster", "duckdb", "pyarrow", "torch", "mlflow", "pydantic"}
    assert not heavy & loaded_by("import orchestration.cli")


def test_who_asks_a_project_imports_no_dagster(tiny):
    code = f"from orchestration.project import load; import orchestration.trace; load({str(tiny)!r})"
    assert not {"dagster", "torch", "mlflow"} & loaded_by(code)


def test_a_foreign_package_of_the_same_name_is_not_imported(tmp_path):
    foreign = tmp_path / "training"
    foreign.mkdir()
    (foreign / "__init__.py").write_text("raise RuntimeError('the wrong training')")
    assert "training.schema" in loaded_by("import training.schema", cwd=tmp_path)
