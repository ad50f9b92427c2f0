"""What the code imports is declared in pyproject.toml and pinned in constraints.txt; what is declared is used."""

import ast
import re
import sys
import tomllib
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("orchestration", "assets", "training")
# Declared and never imported by name: who uses it.
USED_BY = {
    "accelerate": "transformers' Trainer",
    "nvidia-ml-py": "MLflow's system metrics of a GPU",
    "timm": "transformers, for encoders that timm made",
    "websockets": "uvicorn, for /stream",
}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(*extras: str) -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for extra in extras for line in project["optional-dependencies"][extra])]
    return {normal(re.split(r"[^\w.-]", line)[0]) for line in lines}


def imported(*folders: str) -> dict[str, str]:
    """Third-party modules (their first names), and a file that imports each."""
    files = {}
    for path in sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            files |= {name.partition(".")[0]: str(path.relative_to(ROOT)) for name in names}
    ours = {*PACKAGES, "triptych", "tests", "benchmarks", *sys.stdlib_module_names}
    return {name: file for name, file in files.items() if name not in ours}


@cache
def installed() -> Mapping[str, list[str]]:
    """Modules (their first names) and the distributions that bring them."""
    return metadata.packages_distributions()


def distributions(module: str) -> set[str]:
    return {normal(name) for name in installed().get(module, [module])}


@pytest.mark.parametrize(
    ("folders", "extras"), [(PACKAGES, ("federation", "ray", "s3", "variants")), (("tests", "benchmarks"), ("dev",))]
)
def test_what_is_imported_is_declared(folders, extras):
    modules, names = imported(*folders), declared(*extras)
    assert {"numpy", "torch" if folders is PACKAGES else "pytest"} <= modules.keys()  # the walk sees what there is
    assert not {module: file for module, file in modules.items() if not distributions(module) & names}


def test_what_is_declared_is_used():
    used = {name for module in imported(*PACKAGES) for name in distributions(module)}
    assert declared() - used == USED_BY.keys()


def test_what_is_declared_is_pinned():
    pinned = {normal(line.partition("==")[0]) for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert declared("dev") <= pinned
