"""Secure aggregation: each silo hides its numbers under masks that cancel in the sum of all (Bonawitz et al. 2017).

Each two silos agree on a secret by X25519, and draw a stream of numbers from it for each attempt at a round; the one
whose name comes first adds it, the other subtracts it. Numbers are whole ones modulo 2^64, so that nothing is rounded.

The coordinator learns the sum of an attempt and no part of it, as long as it keeps to the protocol: it passes on the
silos' keys and no keys of its own, and takes nothing of an attempt that is over. Silos that act together with it can
take what they added off a sum. A silo that is lost within an attempt leaves its masks in the sum: the attempt is void,
and repeated without that silo under other masks. Nothing that looks at single silos (krum, median, a check for NaN) is
left.

Shapes: S silos, P numbers.
"""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

_SCALE = 2.0**24  # of a whole number: what is rounded away is below 1e-7 of a row's change
_MOST = 2.0**62  # that a sum may be before it would turn round


def new_key() -> "X25519PrivateKey":
    """A silo's own, for one session."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    return X25519PrivateKey.generate()


def public(key: "X25519PrivateKey") -> str:
    return key.public_key().public_bytes_raw().hex()


def masked(
    numbers_P: np.ndarray, key: "X25519PrivateKey", keys: Mapping[str, str], me: str, attempt: Sequence[int | str]
) -> np.ndarray:
    """The numbers as whole ones (P,) of uint64, hidden.

    Args:
        keys: public ones of all that take part, by silo.
        attempt: session, round and attempt, by which masks are never used twice.

    Raises:
        ValueError: a number is too large or none, or a key is none.
    """
    most = _MOST / _SCALE / len(keys)
    if not np.isfinite(numbers_P).all() or np.abs(numbers_P).max(initial=0.0) > most:
        raise ValueError("what was learned holds numbers that are none, or too large to be added up: lower the rate")
    hidden_P = np.rint(numbers_P * _SCALE).astype(np.int64).view(np.uint64)
    for other in sorted(keys):
        if other != me:
            stream_P = _stream(key, keys[other], attempt, len(numbers_P))
            hidden_P = hidden_P + stream_P if me < other else hidden_P - stream_P
    return hidden_P


def summed(hidden_SP: Sequence[np.ndarray]) -> np.ndarray:
    """The sum (P,) of what the silos of an attempt hid."""
    total_P = np.zeros_like(hidden_SP[0])
    for hidden_P in hidden_SP:
        total_P = total_P + hidden_P
    return total_P.view(np.int64).astype(np.float64) / _SCALE


def _stream(key: "X25519PrivateKey", other: str, attempt: Sequence[int | str], length: int) -> np.ndarray:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    shared = key.exchange(X25519PublicKey.from_public_bytes(bytes.fromhex(other)))
    context = json.dumps(list(attempt)).encode()
    seed = HKDF(hashes.SHA256(), 32, salt=None, info=b"triptych mask " + context).derive(shared)
    cipher = Cipher(algorithms.ChaCha20(seed, bytes(16)), mode=None).encryptor()
    return np.frombuffer(cipher.update(bytes(8 * length)), "<u8")
