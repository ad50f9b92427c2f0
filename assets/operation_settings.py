"""How a project is run without a person: who is told when it fails, what is tried again, how fresh it has to be."""

import os
import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from assets.joins.time_options import Seconds
from training.validation import FORBID_EXTRA, OneOrMore, Strings, check

_PORTS = {"starttls": 587, "tls": 465, "none": 25}
_MINUTE = 60  # Dagster knows no shorter windows
_URL = re.compile(r"https?://[!-~]+")


@dataclass(frozen=True, kw_only=True)
class Variable:
    """What lies in the environment, since the project file is shared: `{env: NAME}`."""

    __pydantic_config__ = FORBID_EXTRA
    env: str

    def read(self) -> str:
        """Raises ValueError where it is not set."""
        if not (value := os.environ.get(self.env)):
            raise ValueError(f"the environment has no {self.env}: set it where `triptych ui` is started")
        return value


class _Hidden:
    """Marks what must not stand in the project file; the error that says so does not repeat it."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        def hidden(value: Any) -> Any:
            if isinstance(value, str):
                raise ValueError("is not for this file, which is shared: write {env: NAME}, and set NAME")
            return value

        return core_schema.no_info_before_validator_function(hidden, handler(source))


@dataclass(frozen=True, kw_only=True)
class MailSettings:
    __pydantic_config__ = FORBID_EXTRA
    host: str
    to: Strings
    sender: str
    security: Literal["starttls", "tls", "none"] = "starttls"
    port: int | None = None  # default: 587, 465 or 25, as `security` is
    user: str | None = None
    password: Annotated[Variable | None, _Hidden()] = None

    def __post_init__(self) -> None:
        check(len(self.to) > 0, "to", self.to, "at least one address")
        for name, addresses in (("to", self.to), ("sender", (self.sender,))):
            for address in addresses:
                check("@" in address and not set(address) & set("\r\n"), name, address, "an address")
        both = (self.user is None) == (self.password is None)
        check(both, "user", self.user, "a user and a password: {env: NAME}, or neither")
        is_safe = self.password is None or self.security != "none"
        check(is_safe, "security", self.security, "starttls or tls: the password would be sent for all to read")

    @property
    def at(self) -> tuple[str, int]:
        return self.host, self.port or _PORTS[self.security]


@dataclass(frozen=True, kw_only=True)
class AlertSettings:
    """Where a message goes when a run fails, while `triptych ui` (its daemon) runs."""

    __pydantic_config__ = FORBID_EXTRA
    webhook: Variable | str | None = None  # gets a POST with a JSON object; the URL most often is a secret: {env: NAME}
    mail: MailSettings | None = None
    # refusal: the gate has refused a new model; drift: what the champion is asked, or answers, is no longer as in its
    # test, by the log of answers
    on: Annotated[tuple[Literal["failure", "refusal", "drift"], ...], OneOrMore(least=1)] = ("failure",)

    def __post_init__(self) -> None:
        check(not (self.webhook is None and self.mail is None), "alerts", None, "a webhook or mail")
        if isinstance(self.webhook, str) and not _URL.fullmatch(self.webhook):  # it may be a secret all the same
            raise ValueError("webhook is no URL: write https://..., or {env: NAME}")

    @property
    def url(self) -> str | None:
        """Of the webhook. Raises ValueError where the environment lacks it, or has something else."""
        if not isinstance(self.webhook, Variable):
            return self.webhook
        if not _URL.fullmatch(url := self.webhook.read()):
            raise ValueError(f"alerts.webhook: {self.webhook.env} of the environment is no URL (https://...)")
        return url


@dataclass(frozen=True, kw_only=True)
class RetrySettings:
    """What is tried again by itself."""

    __pydantic_config__ = FORBID_EXTRA
    steps: int = 0  # times that a step which reads the sources is tried again: for networks that fail now and then
    delay: Seconds = 30.0  # before the first; each further one waits twice as long
    runs: int = 0  # times that a run of the web UI, the schedule or a sensor goes on from the step that failed

    def __post_init__(self) -> None:
        for name in ("steps", "delay", "runs"):
            check(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")


@dataclass(frozen=True, kw_only=True)
class FreshnessSettings:
    """How old samples and model may be before Dagster warns, or calls them stale."""

    __pydantic_config__ = FORBID_EXTRA
    fail_after: Seconds
    warn_after: Seconds | None = None

    def __post_init__(self) -> None:
        check(self.fail_after >= _MINUTE, "fail_after", self.fail_after, "a minute or more, such as 26 h")
        if self.warn_after is not None:
            is_between = _MINUTE <= self.warn_after < self.fail_after
            check(is_between, "warn_after", self.warn_after, "a minute or more, and less than fail_after")
