"""What of one content an answer hangs on (`training.attribution`). Needs no torch."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class AttributionMap:
    """What the answer owes to one content; above 0 where it speaks for the answer. In nats of its log-probability."""

    modality: str
    how: str
    values: np.ndarray  # as `pixels` lie: (H, W), coarser where pieces are left out; or (P,) of pieces
    pieces: Sequence[str] = ()  # words
    pixels: np.ndarray | None = None  # uint8 (H, W, 3) or (H, W), what the map lies over; None: words
