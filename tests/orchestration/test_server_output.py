"""What servers print: every line, in colour where a terminal shows it, and no password."""

import json
import os
import pty
import re
import subprocess
import sys
import termios
from pathlib import Path

from orchestration.servers import environment

SECRET = "xyzzy42"
RUN = "import json, os, sys; from orchestration.servers import run_until_stopped; "
RUN += "sys.exit(run_until_stopped([json.loads(sys.argv[1])], os.environ))"
CHATTY = """
import sys
for n in range(50_000):
    print(f"out {n} postgresql://user:xyzzy42@host/db")
    print(f"err {n} password=xyzzy42 é", file=sys.stderr)
print("the end, without a line end", end="")
"""
COLOURED = """
import os, sys
for stream in (sys.stdout, sys.stderr):
    if stream.isatty():
        print(f"\\x1b[31m{os.get_terminal_size(stream.fileno())} http://u:xyzzy42@host\\x1b[0m", file=stream)
"""


def command(*server: str) -> list[str]:
    return [sys.executable, "-P", "-c", RUN, json.dumps([sys.executable, *server])]


def test_a_server_that_names_its_store_is_not_heard_saying_the_password(tmp_path: Path) -> None:
    store = f"sqlite://user:{SECRET}@host/mlflow.db"
    argv = command("-m", "mlflow", "server", "--backend-store-uri", store, "--port", "0", "--workers", "1")
    done = subprocess.run(argv, env=environment(tmp_path), capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    said = done.stdout + done.stderr
    assert "sqlite://***@host/mlflow.db" in said and SECRET not in said
    assert done.stderr.splitlines()[-1].startswith("-m mlflow server ended with exit code 1")


def test_no_line_of_a_chatty_server_is_lost_or_mixed_with_another(tmp_path: Path) -> None:
    argv, env = command("-c", CHATTY), environment(tmp_path) | {"PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(argv, env=env, capture_output=True, encoding="utf-8", check=False, timeout=120)
    out, err = done.stdout.splitlines(), done.stderr.splitlines()
    assert out == [*(f"out {n} postgresql://***@host/db" for n in range(50_000)), "the end, without a line end"]
    assert err[:50_000] == [f"err {n} password=*** é" for n in range(50_000)]


def test_a_server_goes_on_when_nobody_reads_what_it_says(tmp_path: Path) -> None:
    server = CHATTY + f"open({str(tmp_path / 'done')!r}, 'w')"
    with subprocess.Popen(command("-c", server), env=environment(tmp_path), stdout=subprocess.PIPE) as started:
        assert started.stdout is not None
        started.stdout.close()
        assert started.wait(120) != 0
    assert (tmp_path / "done").exists()


def test_what_is_coloured_on_a_terminal_stays_so(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (20, 77))
    argv = command("-c", COLOURED)
    with subprocess.Popen(argv, env=environment(tmp_path), stdout=theirs, stderr=theirs) as started:
        os.close(theirs)
        said = b""
        try:
            while part := os.read(ours, 4096):
                said += part
        except OSError:  # its end
            pass
        assert started.wait(120) == 1
    os.close(ours)
    line = "\x1b[31mos.terminal_size(columns=77, lines=20) http://***@host\x1b[0m\r\n"
    assert said.decode().count(line) == 2 and not re.search("\r\r|[^\r]\n", said.decode())
