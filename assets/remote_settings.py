"""How what lies behind URLs is reached."""

from dataclasses import dataclass, fields

from training.validation import check


@dataclass(frozen=True, kw_only=True)
class RemoteSettings:
    """Credentials are no settings: they come from the environment (docs/layouts.md, "Files that lie elsewhere")."""

    endpoint_url: str | None = None  # of an S3 store that is not Amazon's; default: AWS_ENDPOINT_URL
    allow_private: bool = False  # true: http(s) URLs may lead to this machine, and into private networks

    def __post_init__(self) -> None:
        is_url = (self.endpoint_url or "http://").startswith(("http://", "https://"))
        check(is_url, "endpoint_url", self.endpoint_url, "http://HOST:PORT or https://HOST")


ANYWHERE = RemoteSettings()
REMOTE = tuple(field.name for field in fields(RemoteSettings))
