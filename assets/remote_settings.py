"""How what lies behind URLs is reached."""

import re
from dataclasses import dataclass, fields

from training.validation import check

_VARIABLE = re.compile("[A-Z_][A-Z0-9_]*").fullmatch


@dataclass(frozen=True, kw_only=True)
class RemoteSettings:
    """Credentials are no settings: they come from the environment (docs/layouts.md, "Files that lie elsewhere")."""

    endpoint_url: str | None = None  # of an S3 store that is not Amazon's; default: AWS_ENDPOINT_URL
    allow_private: bool = False  # true: http(s) URLs may lead to this machine, and into private networks
    token_env: str | None = None  # variable of the environment with the bearer token that the source's web server asks

    def __post_init__(self) -> None:
        is_url = (self.endpoint_url or "http://").startswith(("http://", "https://"))
        check(is_url, "endpoint_url", self.endpoint_url, "http://HOST:PORT or https://HOST")
        if self.token_env is not None and not _VARIABLE(self.token_env):  # which may be the token itself
            raise ValueError("token_env: expected the name of a variable of the environment, such as SHOP_TOKEN")


ANYWHERE = RemoteSettings()
REMOTE = tuple(field.name for field in fields(RemoteSettings))
