"""A full disk, a home that cannot be written, a database that cannot: named, with what to do, in one line."""

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-P", "-B", "-m", "orchestration.cli"]
AS_OTHERS = (
    ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.getuid() == 0 else []
)  # root may write everywhere


def error(home: Path, *arguments: str, prepare: Callable[[], None] | None = None) -> str:
    """What a command that fails says last."""
    env = os.environ | {"TRIPTYCH_HOME": str(home), "PYTHONPATH": str(ROOT), "HOME": str(home.parent)}
    command = [*AS_OTHERS, *COMMAND, *arguments]
    done = subprocess.run(
        command, env=env, capture_output=True, text=True, check=False, timeout=300, preexec_fn=prepare
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert done.stderr.endswith(f"{line}\n"), "one line, and the last"
    return line


@pytest.mark.parametrize(("size", "command"), [(20_000, "run"), (150_000, "run"), (400_000, "status")])
def test_a_full_disk(tiny, home, size, command):
    def limit() -> None:  # writing past it fails as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    said = error(home, command, str(tiny), prepare=limit)
    assert said.endswith(
        f"the disk is full, or fails: make room (all state lies under {home}), then the same command goes on"
    )


@pytest.mark.skipif(os.getuid() == 0 and not shutil.which("setpriv"), reason="root may write everywhere")
def test_a_home_that_cannot_be_written(tiny, home):
    advice = f"{home} or a file in it cannot be written: make it writable, or set TRIPTYCH_HOME to another folder"
    home.chmod(0o555)
    for command in ("run", "status"):
        assert error(home, command, str(tiny)).endswith(advice)
    home.chmod(0o755)
    subprocess.run([*COMMAND, "status", str(tiny)], env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)
    (home / "mlflow.db").chmod(0o444)
    assert error(home, "run", str(tiny)).endswith(advice), "before anything is done"
    (home / "history" / "runs").chmod(0o555)
    assert error(home, "run", str(tiny), "--select", "manifest").endswith(advice)
