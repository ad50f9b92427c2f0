"""A child process imports this code or the one it is to use, and nothing of the folder that it starts in."""

import json
import subprocess
import sys

import pytest
from filelock import FileLock

from training import children

REPORT = """
import json, os, sys, training.schema
names = ("OMP_WAIT_POLICY", "TOKENIZERS_PARALLELISM", "COLOUR")
print(json.dumps({"file": training.schema.__file__, "env": {name: os.environ.get(name) for name in names}}))
"""


@pytest.fixture
def foreign(tmp_path):
    """A folder with a package of our name that must not be imported."""
    package = tmp_path / "foreign" / "training"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('the wrong training')")
    return package.parent


def report(env: dict[str, str], cwd) -> dict:
    done = subprocess.run([sys.executable, "-c", REPORT], env=env, cwd=cwd, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_a_child_imports_this_checkout_first(foreign, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(foreign))
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    answer = report(children.environment(COLOUR="red"), foreign)
    assert answer["file"] == str(children.CODE / "training" / "schema.py")
    assert answer["env"] == {"OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false", "COLOUR": "red"}
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert report(children.environment(), foreign)["env"]["OMP_WAIT_POLICY"] == "ACTIVE"


def test_a_child_with_other_code_imports_nothing_of_ours(foreign, tmp_path, monkeypatch):
    package = tmp_path / "logged" / "training"
    package.mkdir(parents=True)
    (package / "schema.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(foreign))
    env = children.environment(package.parent, PYTHONPATH=str(foreign))
    assert report(env, foreign)["file"] == str(package / "schema.py")


def test_a_lock_is_free_when_no_process_holds_it(tmp_path):
    lock = tmp_path / "lock"
    assert children.is_free(lock)
    with FileLock(lock, thread_local=False):
        code = f"from training.children import is_free; from pathlib import Path; print(is_free(Path({str(lock)!r})))"
        run = [sys.executable, "-c", code]
        done = subprocess.run(run, env=children.environment(), capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (-9, "was killed by signal 9 (SIGKILL): most likely out of memory; lower training.batch_size"),
        (137, "was killed by signal 9 (SIGKILL): most likely out of memory; lower training.batch_size"),
        (-11, "was killed by signal 11 (SIGSEGV)"),
        (143, "was killed by signal 15 (SIGTERM)"),
        (1, "ended with exit code 1"),
    ],
)
def test_how_a_process_ended_in_words(code, words):
    assert children.how_ended(code).startswith(words)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("epochs is 0\nexpected 1"), "epochs is 0 expected 1"),
        (RuntimeError("mat1 and mat2"), "mat1 and mat2"),
        (RuntimeError(), "RuntimeError"),
        (KeyError("colour"), "KeyError: 'colour'"),
        (MemoryError(), "out of memory: lower training.batch_size, or set training.parallel to 1 (MemoryError)"),
        (
            RuntimeError("CUDA out of memory. Tried"),
            "out of memory: lower training.batch_size, or set training.parallel",
        ),
        (RuntimeError("alloc_cpu: can't allocate memory: you"), "out of memory: lower training.batch_size"),
        (TypeError("x" * 5000), f"TypeError: {'x' * 200}"),
    ],
)
def test_the_last_words_are_one_line(error, words):
    said = children.last_words(error)
    assert said.startswith(words) and "\n" not in said and len(said) < 700
