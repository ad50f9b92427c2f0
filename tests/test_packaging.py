"""The distribution holds every module and every file that the packages read, in subfolders too."""

import itertools
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("orchestration", "assets", "training")


def files(root: Path) -> set[str]:
    found = (path for package in PACKAGES for path in (root / package).rglob("*") if path.is_file())
    found = itertools.chain(found, [root / "triptych.py"])
    return {str(path.relative_to(root)) for path in found if "__pycache__" not in path.parts}


def test_the_wheel_holds_all_files_of_the_packages_and_no_tests(tmp_path):
    source = tmp_path / "source"  # setuptools writes beside what it packs
    for package in (*PACKAGES, "tests"):
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "triptych.py"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    subprocess.run([*build, str(source)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert packed == files(ROOT)
