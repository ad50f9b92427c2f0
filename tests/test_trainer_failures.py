"""Why a training failed reaches the terminal and Dagster: one sentence, the trainer's own, however it ended."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import pytest
from click.testing import CliRunner, Result

from orchestration.cli import main
from orchestration.run import open_instance

pytestmark = pytest.mark.slow

FUSION = '''
import os
import signal
from dataclasses import dataclass

from training.fusions.concat import ConcatFusion


class Odd(Exception):
    """Cannot cross from one process to another."""

    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


class BrokenFusion(ConcatFusion):
    @dataclass(frozen=True)
    class Options:
        how: str = "key"

    def __init__(self, modalities, shape, options):
        super().__init__(modalities, shape)
        self.how = options.how

    def forward(self, tokens, mask):
        if self.how == "key":
            raise KeyError("colour")
        if self.how == "runtime":
            raise RuntimeError("the first line\\nand the second")
        if self.how == "memory":
            raise MemoryError
        if self.how == "odd":
            raise Odd("salt", "pepper")
        os.kill(os.getpid(), getattr(signal, self.how))
'''
NO_MEMORY = "most likely out of memory; lower training.batch_size"
WAYS = {
    "key": "KeyError: 'colour'",
    "runtime": "the first line and the second",
    "memory": "out of memory: lower training.batch_size",
    "odd": "Odd: salt and pepper",
    "SIGKILL": f"was killed by signal 9 (SIGKILL): {NO_MEMORY}",
    "SIGSEGV": "was killed by signal 11 (SIGSEGV)",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, make_project: Callable[..., Path]) -> Iterator[Callable[..., Result]]:
    """`triptych run` of a project whose dataset is there."""
    folder = tmp_path_factory.mktemp("failures")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRIPTYCH_HOME", str(folder / "home"))
        patch.setenv("DAGSTER_HOME", str(folder / "home"))
        project = make_project(folder / "project")
        (project.parent / "broken_of_test.py").write_text(FUSION)

        def run(*arguments: str, debug: bool = False) -> Result:
            return CliRunner().invoke(main, [*(["--debug"] if debug else []), "run", str(project), *arguments])

        assert run("--select", "+dataset").exit_code == 0
        yield run


@pytest.mark.parametrize(("how", "parallel"), [(how, 1 + n % 2) for n, how in enumerate(WAYS)])
def test_the_last_words_of_a_trainer(
    run: Callable[..., Result], how: str, parallel: int, capfd: pytest.CaptureFixture[str]
) -> None:
    fusion = f"model.fusion={{kind: 'broken_of_test:BrokenFusion', how: {how}}}"
    result = run("--select", "model", "--set", fusion, "--set", f"training.parallel={parallel}")
    assert result.exit_code == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith("Error: ") and WAYS[how] in last, result.stderr
    of_trainer = capfd.readouterr().err
    assert "Traceback" not in result.stderr and "Traceback" not in of_trainer, of_trainer
    with open_instance(Path(os.environ["TRIPTYCH_HOME"])) as instance:
        (newest,) = instance.get_runs(limit=1)
        events = [entry.dagster_event for entry in instance.all_logs(newest.run_id) if entry.dagster_event]
        (failed,) = (event for event in events if event.event_type == dg.DagsterEventType.STEP_FAILURE)
        assert WAYS[how] in failed.step_failure_data.user_failure_data.description
        if not how.startswith("SIG"):  # the web UI has the traceback
            (told,) = (
                e for e in events if e.event_type == dg.DagsterEventType.ENGINE_EVENT and e.engine_event_data.error
            )
            assert "broken_of_test.py" in told.engine_event_data.error.to_string()


def test_debug_shows_the_traceback(run: Callable[..., Result]) -> None:
    fusion = "model.fusion={kind: 'broken_of_test:BrokenFusion', how: key}"
    result = run("--select", "model", "--set", fusion, "--set", "training.parallel=1", debug=True)
    assert "broken_of_test.py" in result.stderr and 'raise KeyError("colour")' in result.stderr
