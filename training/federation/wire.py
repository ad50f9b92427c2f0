"""What passes between coordinator and silos: JSON, and weights as the bytes of safetensors; never a pickle.

    POST /join    Joining                                -> {}
    GET  /plan                                           -> Plan, once all are there
    GET  /round                                          -> weights and Task, when there is one; or {"ended": words}
    POST /update  changes of weights, and Learned        -> {}
    POST /alive                                          -> {}

Each request names its silo and has its token; what is refused is answered {"error": words}, and 204 means: not yet.
"""

import hashlib
import hmac
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from training.federation.settings import TOKEN
from training.validation import check

PROTOCOL = 1
SILO = "X-Triptych-Silo"  # the header with a silo's name
_HEADER = "triptych"  # of safetensors' metadata


class RefusedError(ValueError):
    """What a silo sent cannot be taken, or it may not take part; the message is for its person."""

    status = 400


class NotAllowedError(RefusedError):
    status = 403


class UnknownSiloError(RefusedError):
    """The coordinator was started anew: the silo has to join again."""

    status = 404


class TooLateError(RefusedError):
    """Of a round that is over; the silo goes on with the present one."""

    status = 409


@dataclass(frozen=True, kw_only=True)
class Joining:
    """What a silo says of itself: numbers and hashes, and labels only where all have agreed to it."""

    silo: str
    parts: dict[str, str]  # section of the project file -> hash of what it says
    modalities: dict[str, int]  # modality -> training rows that have it; -1: some, and it is not said how many
    rows: int  # -1: it is not said how many
    labels: list[str] = field(default_factory=list)
    key: str = ""  # hexadecimal, where sums are masked: its public key for this session


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a silo makes the model of, beside its own settings."""

    session: str  # names this start of the coordinator
    fitted: dict[str, Any]  # what the output knows of the labels (`Output.fit`)
    tokenizer: str  # of `llm: tiny`, as JSON; "": that of the language model
    rounds: int


@dataclass(frozen=True, kw_only=True)
class Task:
    """A round, beside its weights."""

    number: int  # from 1
    attempt: int = 1  # masks are never used twice
    keys: dict[str, str] = field(default_factory=dict)  # of the silos whose masks cancel
    judged: bool = False  # whether the silo says how the weights do on its own validation rows


@dataclass(frozen=True, kw_only=True)
class Learned:
    """What a silo says of its part in a round, beside the changes of weights."""

    number: int
    attempt: int = 1
    rows: dict[str, int] = field(default_factory=dict)  # part of the model -> rows that it was learned from
    loss: float | None = None  # mean of its training rows; not said where sums are masked or rows are private
    right: int = 0  # of `validated` validation rows, by the weights of the task
    validated: int = 0
    epsilon: float | None = None  # spent so far, where rows are private


def packed(tensors: Mapping[str, np.ndarray], said: Task | Learned) -> bytes:
    return save({name: np.ascontiguousarray(x) for name, x in tensors.items()}, {_HEADER: json.dumps(asdict(said))})


def unpacked(data: bytes, kind: type) -> tuple[dict[str, np.ndarray], Any]:
    """Tensors, and what was said beside them. Raises RefusedError: it is no such message."""
    try:
        tensors = load(data)
        length = int.from_bytes(data[:8], "little")
        said = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][_HEADER])
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise RefusedError(f"the body is no message of safetensors: {error}") from None
    return tensors, read(kind, said)


def read(kind: Any, said: Any) -> Any:
    """A message of plain values. Raises RefusedError: it is none."""
    try:
        message = kind(**said)
        for name, hint in kind.__annotations__.items():
            _check_type(name, getattr(message, name), hint)
    except (TypeError, ValueError) as error:
        raise RefusedError(f"the message is no {kind.__name__}: {error}") from None
    return message


def _check_type(name: str, value: Any, hint: Any) -> None:
    plain: dict[Any, tuple[type, ...]] = {int: (int,), str: (str,), bool: (bool,), (float | None): (int, float)}
    if hint in plain:
        is_none = value is None and hint == (float | None)
        ok = is_none or (isinstance(value, plain[hint]) and (hint is bool or not isinstance(value, bool)))
        check(ok, name, value, str(hint))
    elif hint == list[str]:
        check(isinstance(value, list) and all(isinstance(v, str) for v in value), name, value, "a list of words")
    elif hint in (dict[str, int], dict[str, str]):
        of = int if hint == dict[str, int] else str
        ok = isinstance(value, dict) and all(isinstance(v, of) and not isinstance(v, bool) for v in value.values())
        check(ok, name, value, str(hint))
    else:
        check(isinstance(value, dict), name, value, "a mapping")


def secret() -> str:
    """The coordinator's secret, or a silo's token. Raises ValueError: the environment has none."""
    if not (value := os.environ.get(TOKEN, "").strip()):
        raise ValueError(
            f"{TOKEN} is not set: at the coordinator it is a secret of your own, at each silo the token that "
            "`triptych federate PROJECT --tokens` shows for it there"
        )
    return value


def token_of(secret: str, silo: str) -> str:
    """The token by which a silo shows that it is that one."""
    return hmac.new(secret.encode(), silo.encode(), hashlib.sha256).hexdigest()


def is_token(given: str, secret: str, silo: str) -> bool:
    return hmac.compare_digest(given.encode(), token_of(secret, silo).encode())
