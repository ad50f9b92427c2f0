"""Messages to people: that a run has failed, or that the gate has refused a model. Dagster's daemon sends them.

A webhook gets {"text", "project", "event", "run_id", "message", "url"} as JSON; chats show its `text`.
"""

import http.client
import json
import smtplib
import ssl
import time
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass
from email.message import EmailMessage
from typing import Any

import dagster as dg

from assets import links
from assets.operation_settings import AlertSettings, MailSettings
from assets.settings import Project
from orchestration.failures import why
from orchestration.history import is_of
from orchestration.project import load
from training.credentials import mask

# All attempts by webhook and mail together stay below a minute: longer, and Dagster takes the sensor for dead, and
# starts it again, which would send the other one over and over.
_SECONDS = 5  # that a server has to answer
_WAITS = (1, 3)  # seconds before each further attempt
_DRIFT_SECONDS = 3600  # between two looks
_WHAT = {
    "failure": "a run has failed",
    "refusal": "the gate has refused a model",
    "drift": "the champion meets other data than in its test",
}
_GOES_ON = "dagster/will_retry"  # tag of a failed run that is tried again by itself (`retries.runs`)


@dataclass(frozen=True)
class Alert:
    project: str
    event: str  # failure, refusal or drift
    run_id: str  # of Dagster; "" of drift
    message: str  # without secrets
    url: str  # of the run in Dagster's web UI; of drift, of the version in MLflow's

    @property
    def subject(self) -> str:
        return f"{self.project}: {_WHAT[self.event]}"

    @property
    def text(self) -> str:
        return f"{self.subject}\n{self.message}\n{self.url}"


def send(settings: AlertSettings, alert: Alert) -> None:
    """By webhook and mail, as the settings say; each is tried three times.

    Raises:
        RuntimeError: one of them was not taken; the message names no URL and no password.
        ValueError: the environment lacks what the settings name.
    """
    failed = []
    if (url := settings.url) is not None:
        failed += _tried("webhook", lambda: _post(url, alert))
    if (mail := settings.mail) is not None:
        failed += _tried(f"mail by {mail.host}", lambda: _mail(mail, alert))
    if failed:
        raise RuntimeError("; ".join(failed))


def _tried(name: str, deliver: Callable[[], None]) -> list[str]:
    """Why it could not be delivered at last, as a list; an empty one where it was. What a server says is left out: it
    may repeat what it was sent."""
    why_not = ""
    for wait in (0, *_WAITS):
        time.sleep(wait)
        try:
            deliver()
            return []
        except (OSError, smtplib.SMTPException, http.client.HTTPException) as error:  # URLError is an OSError
            code = getattr(error, "code", None) or getattr(error, "smtp_code", None)
            why_not = f"{name}: {type(error).__name__}{f' {code}' if code else ''}"
    return [why_not]


def _post(url: str, alert: Alert) -> None:
    body = json.dumps({"text": alert.text} | asdict(alert)).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"}, method="POST")
    with urllib.request.urlopen(request, timeout=_SECONDS):
        pass


def _mail(settings: MailSettings, alert: Alert) -> None:
    message = EmailMessage()
    message["Subject"], message["From"], message["To"] = alert.subject, settings.sender, ", ".join(settings.to)
    message.set_content(alert.text)
    host, port = settings.at
    context = ssl.create_default_context()
    is_tls = settings.security == "tls"
    smtp: smtplib.SMTP = (
        smtplib.SMTP_SSL(host, port, timeout=_SECONDS, context=context)
        if is_tls
        else smtplib.SMTP(host, port, timeout=_SECONDS)
    )
    with smtp:
        if settings.security == "starttls":
            smtp.starttls(context=context)
        if settings.user is not None and settings.password is not None:
            smtp.login(settings.user, settings.password.read())
        smtp.send_message(message)


def alert_sensors(project: Project) -> list[dg.SensorDefinition]:
    """Those that the settings ask for: they see every run of this TRIPTYCH_HOME, and tell of the project's."""
    if project.alerts is None:
        return []
    path, name = project.path, project.name

    def tell(event: str, context: dg.RunStatusSensorContext, message: str) -> None:
        settings, run_id = load(path), context.dagster_run.run_id
        if settings.alerts is not None:
            send(settings.alerts, Alert(name, event, run_id, mask(message), links.dagster_run(settings, run_id)))

    sensors = []
    if "failure" in project.alerts.on:

        @dg.run_failure_sensor(
            name=f"{name}_failures",
            description="Tells people when a run fails.",
            monitor_all_code_locations=True,  # runs that `triptych run` starts are of none
            default_status=dg.DefaultSensorStatus.RUNNING,
        )
        def failures(context: dg.RunFailureSensorContext) -> None:
            if is_of(context.dagster_run, name) and context.dagster_run.tags.get(_GOES_ON) != "true":
                tell("failure", context, why(events_of(context)))

        sensors.append(failures)
    if "refusal" in project.alerts.on:

        @dg.run_status_sensor(
            name=f"{name}_refusals",
            description="Tells people when the gate refuses a model.",
            run_status=dg.DagsterRunStatus.SUCCESS,
            monitor_all_code_locations=True,
            default_status=dg.DefaultSensorStatus.RUNNING,
        )
        def refusals(context: dg.RunStatusSensorContext) -> None:
            if is_of(context.dagster_run, name) and (reasons := _refused(context, name)):
                tell("refusal", context, reasons)

        sensors.append(refusals)
    if "drift" in project.alerts.on:

        @dg.sensor(
            name=f"{name}_drift",
            description="Tells people when what the champion is asked, or answers, is no longer as in its test.",
            minimum_interval_seconds=_DRIFT_SECONDS,
            default_status=dg.DefaultSensorStatus.RUNNING,
        )
        def drifts(context: dg.SensorEvaluationContext) -> dg.SkipReason:
            return _tell_drift(context, load(path))

        sensors.append(drifts)
    return sensors


def _tell_drift(context: dg.SensorEvaluationContext, project: Project) -> dg.SkipReason:
    """Once for each version and what differs of it. There is never a run to ask for."""
    from orchestration.drift import drift

    try:
        found = drift(project)
    except ValueError as error:  # no champion yet, or no answer
        return dg.SkipReason(str(error))
    told = json.dumps([found.version, found.differs])
    if found.differs and context.cursor != told and project.alerts is not None:
        url = links.mlflow_version(project, found.version)
        words = f"{found.answers:,} answers of version {found.version}, beside {found.rows:,} test rows"
        send(project.alerts, Alert(project.name, "drift", "", "\n".join([words, *found.words]), url))
    context.update_cursor(told)
    return dg.SkipReason(f"differs: {', '.join(found.differs) or 'nothing'}")


def events_of(context: dg.RunStatusSensorContext) -> list[dg.DagsterEvent]:
    entries = context.instance.all_logs(context.dagster_run.run_id)
    return [entry.dagster_event for entry in entries if entry.dagster_event is not None]


def _refused(context: dg.RunStatusSensorContext, project: str) -> str | None:
    """What the gate said of a version that it did not make champion; None where it did, or was not asked."""
    for event in events_of(context):
        if event.is_step_materialization and event.asset_key == dg.AssetKey([project, "champion"]):
            metadata = event.step_materialization_data.materialization.metadata
            said: dict[str, Any] = {name: value.value for name, value in metadata.items()}
            if "champion" not in said["aliases"]:
                return "\n".join([said["summary"], *said["reasons"]])
    return None
