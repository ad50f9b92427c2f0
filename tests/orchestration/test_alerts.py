"""Alerts: what is sent, to real servers on loopback, and that no secret is told."""

import base64
import json
import shutil
import socketserver
import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from assets.operation_settings import AlertSettings, MailSettings, Variable
from orchestration import alerts
from orchestration.alerts import Alert, send
from orchestration.definitions import project_definitions
from orchestration.project import ProjectError, load
from orchestration.run import RunFailed, open_instance, run_job
from training.records import Verdict

ALERT = Alert("tiny", "failure", "run1", "tiny__image: photos is empty", "http://127.0.0.1:3000/runs/run1")
SECRET = "xyzzy42"


@pytest.fixture
def hook() -> Iterator[Any]:
    """A server that takes alerts; `answers` are used up, then it answers 200."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            server.got.append((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
            self.send_response(server.answers.pop(0) if server.answers else 200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.got, server.answers = [], []
    server.url = f"http://127.0.0.1:{server.server_port}/hooks/{SECRET}"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of localhost, with its key; trusted in this test."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    path = tmp_path / "localhost.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", str(path)]
    subprocess.run([*command, "-out", str(tmp_path / "cert.pem")], check=True, capture_output=True)
    (tmp_path / "ca.pem").write_text((tmp_path / "cert.pem").read_text())
    path.write_text(path.read_text() + (tmp_path / "cert.pem").read_text())
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    return path


@pytest.fixture
def mailbox(certificate: Path) -> Iterator[Any]:
    """An SMTP server that wants STARTTLS and a password."""

    class Handler(socketserver.StreamRequestHandler):
        def say(self, line: str) -> None:
            self.wfile.write(f"{line}\r\n".encode())

        def handle(self) -> None:
            self.say("220 localhost")
            is_safe, known = False, False
            while line := self.rfile.readline().decode().strip():
                word = line.split()[0].upper()
                server.said.append(line)
                if word == "EHLO":
                    self.say("250-localhost")
                    self.say("250 AUTH PLAIN" if is_safe else "250 STARTTLS")
                elif word == "STARTTLS":
                    self.say("220 go on")
                    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                    context.load_cert_chain(certificate)
                    self.request = context.wrap_socket(self.request, server_side=True)
                    self.rfile, self.wfile, is_safe = self.request.makefile("rb"), self.request.makefile("wb", 0), True
                elif word == "AUTH":
                    known = is_safe and base64.b64decode(line.split()[2]) == f"\0ann\0{SECRET}".encode()
                    self.say("235 known" if known else f"535 {line} is wrong")
                elif word == "DATA":
                    self.say("354 go on")
                    while (part := self.rfile.readline().decode().rstrip("\r\n")) != ".":
                        server.mail.append(part)
                    self.say("250 taken")
                elif word == "QUIT":
                    self.say("221 bye")
                    return
                else:
                    self.say("250 ok" if known else "530 who are you?")

    server: Any = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads, server.said, server.mail = True, [], []
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_a_webhook_gets_json_and_is_tried_again(hook, monkeypatch):
    monkeypatch.setattr(alerts, "_WAITS", (0, 0))
    monkeypatch.setenv("HOOK", hook.url)
    hook.answers = [503]
    send(AlertSettings(webhook=Variable(env="HOOK")), ALERT)
    assert [path for path, _ in hook.got] == [f"/hooks/{SECRET}"] * 2
    assert hook.got[1][1] == {
        **{"project": "tiny", "event": "failure", "run_id": "run1", "message": ALERT.message, "url": ALERT.url},
        "text": f"tiny: a run has failed\n{ALERT.message}\n{ALERT.url}",
    }
    hook.answers = [500, 500, 404]
    with pytest.raises(RuntimeError, match=r"^webhook: HTTPError 404$"):
        send(AlertSettings(webhook=hook.url), ALERT)
    monkeypatch.delenv("HOOK")
    with pytest.raises(ValueError, match="the environment has no HOOK"):
        send(AlertSettings(webhook=Variable(env="HOOK")), ALERT)


def test_mail_goes_by_starttls_with_a_password(mailbox, monkeypatch):
    monkeypatch.setattr(alerts, "_WAITS", ())
    monkeypatch.setenv("MAIL_PASSWORD", SECRET)
    mail = MailSettings(
        **{"host": "localhost", "port": mailbox.server_address[1], "sender": "triptych@example.org", "user": "ann"},
        to=("ann@example.org", "bob@example.org"),
        password=Variable(env="MAIL_PASSWORD"),
    )
    send(AlertSettings(mail=mail), ALERT)
    assert {"Subject: tiny: a run has failed", "To: ann@example.org, bob@example.org"} <= set(mailbox.mail)
    assert ALERT.message in mailbox.mail
    assert [line for line in mailbox.said if line.startswith("rcpt")] == [
        f"rcpt TO:<{a}@example.org>" for a in ("ann", "bob")
    ]
    monkeypatch.setenv("MAIL_PASSWORD", "another")
    with pytest.raises(RuntimeError, match=r"^mail by localhost: SMTPAuthenticationError 535$"):
        send(AlertSettings(mail=mail), ALERT)
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(RuntimeError, match="SSLCertVerificationError"):
        send(AlertSettings(mail=mail), ALERT)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("alerts={}", "expected a webhook or mail"),
        ("alerts={webhook: hooks.example.org}", "webhook is no URL"),
        ("alerts={mail: {host: h, to: a@b, sender: c@d, user: u}}", "a user and a password"),
        ("alerts={mail: {host: h, to: a@b, sender: nobody}}", "sender is 'nobody', expected an address"),
        (
            "alerts={mail: {host: h, to: a@b, sender: c@d, user: u, password: {env: P}, security: none}}",
            "the password would be sent for all to read",
        ),
        (f"alerts={{mail: {{host: h, to: a@b, sender: c@d, user: u, password: {SECRET}}}}}", "is not for this file"),
        ("alerts={webhook: {env: H}, on: success}", "on"),
        ("freshness={fail_after: 10 s}", "expected a minute or more"),
        ("freshness={fail_after: 2 h, warn_after: 3 h}", "less than fail_after"),
        ("retries={steps: -1}", "expected 0 or more"),
    ],
)
def test_settings_that_cannot_be_are_refused(tiny, setting, words):
    with pytest.raises(ProjectError, match=words) as refused:
        load(tiny, [setting])
    assert SECRET not in str(refused.value)


class Looks:
    """A sensor of a project, asked again and again as the daemon does."""

    def __init__(self, path: Path, name: str, instance: dg.DagsterInstance) -> None:
        self.found, self.instance, self.cursor = project_definitions(load(path)), instance, None
        self.sensor = self.found.resolve_sensor_def(name)

    def __call__(self) -> None:
        context = dg.build_sensor_context(self.instance, cursor=self.cursor, definitions=self.found)
        self.cursor = self.sensor.evaluate_tick(context).cursor


@pytest.mark.slow
def test_the_daemons_sensor_tells_of_a_run_that_failed_and_of_no_other(tiny, home, hook, monkeypatch):
    monkeypatch.setenv("HOOK", hook.url)
    monkeypatch.setattr(alerts, "_WAITS", ())
    tiny.write_text(tiny.read_text() + "alerts: {webhook: {env: HOOK}}\n")
    project = load(tiny)
    with open_instance(home) as instance:
        look = Looks(tiny, "tiny_failures", instance)
        assert look.sensor.default_status == dg.DefaultSensorStatus.RUNNING
        look()
        run_job(project, instance, "manifest")
        look()
        assert hook.got == []
        shutil.rmtree(tiny.parent / "photos")
        with pytest.raises(RunFailed):
            run_job(project, instance, "manifest")
        look()
        ((_, told),) = hook.got
        run = instance.get_runs(limit=1)[0]
        assert (told["event"], told["project"], told["run_id"]) == ("failure", "tiny", run.run_id)
        assert "tiny__manifest: " in told["message"] and "photos" in told["message"]
        assert told["url"].endswith(run.run_id)
        look()
        assert len(hook.got) == 1, "once"


def test_a_refusal_of_the_gate_is_told_where_that_is_asked_for(tiny, hook):
    tiny.write_text(tiny.read_text() + f"alerts: {{webhook: '{hook.url}', on: refusal}}\n")
    instance = dg.DagsterInstance.ephemeral()
    look = Looks(tiny, "tiny_refusals", instance)
    look()
    for aliases in (["challenger", "champion"], ["challenger"]):
        reasons = ["not better than the champion", "better than the majority answer"]
        verdict = Verdict(version=2, champion_before="1", champion="1", aliases=aliases, reasons=reasons)

        @dg.asset(key=["tiny", "champion"])
        def champion(verdict: dg.ResourceParam[Verdict]) -> dg.MaterializeResult:
            return dg.MaterializeResult(metadata={"summary": "version 2 keeps challenger", **verdict.to_json()})

        job = dg.define_asset_job("tiny", "*")
        made = dg.Definitions(assets=[champion], jobs=[job], resources={"verdict": verdict})
        assert made.resolve_job_def("tiny").execute_in_process(instance=instance).success
        look()
    ((_, told),) = hook.got
    assert told["event"] == "refusal"
    assert told["message"] == "\n".join(["version 2 keeps challenger", *verdict.reasons])


def test_what_is_no_url_is_not_repeated(monkeypatch):
    monkeypatch.setenv("ALERT_URL", "hooks.example.org/services/T/SECRET")
    with pytest.raises(ValueError, match="ALERT_URL of the environment is no URL") as told:
        _ = AlertSettings(webhook=Variable(env="ALERT_URL")).url
    with pytest.raises(ValueError, match="webhook is no URL") as also:
        AlertSettings(webhook="https://hooks.example.org/services/T SECRET")
    assert "SECRET" not in f"{told.value}{also.value}"
