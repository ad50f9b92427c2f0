"""Random generators that are keyed, never global, so that a resumed run draws what the undisturbed one would have."""

import hashlib

import numpy as np


def generator(seed: int, epoch: int, sample_id: str) -> np.random.Generator:
    """The random generator of one sample in one epoch."""
    key = hashlib.blake2b(f"{seed}\0{epoch}\0{sample_id}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(key, np.uint64)))
