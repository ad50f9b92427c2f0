"""The options of fusions; here, where nothing is heavy, since project files are checked by them."""

from dataclasses import dataclass, field

from training.catalog import FUSIONS
from training.family import Choice, is_own
from training.settings import choose
from training.validation import check


@dataclass(frozen=True, kw_only=True)
class Bottleneck:
    tokens: int = 4  # of the bottleneck; as many soft tokens come out
    layers: int = 2  # with fewer than two no modality reads what another one said

    def __post_init__(self) -> None:
        for name in ("tokens", "layers"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")


@dataclass(frozen=True, kw_only=True)
class Perceiver:
    latents: int = 8  # queries; as many soft tokens come out
    layers: int = 2

    def __post_init__(self) -> None:
        for name in ("latents", "layers"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")


@dataclass(frozen=True, kw_only=True)
class Tensor:
    width: int = 8  # of each modality before the product, which has (width + 1) ** modalities values

    def __post_init__(self) -> None:
        check(1 <= self.width <= 64, "width", self.width, "1 to 64")


@dataclass(frozen=True, kw_only=True)
class LowRank:
    rank: int = 4

    def __post_init__(self) -> None:
        check(self.rank >= 1, "rank", self.rank, "at least 1")


@dataclass(frozen=True, kw_only=True)
class Hybrid:
    joint: Choice = field(default_factory=lambda: Choice("concat"))  # how all modalities are read together

    def __post_init__(self) -> None:
        choose(self, "joint", FUSIONS)
        is_late = self.joint.kind in ("hybrid", "logit")
        check(not is_late, "joint", str(self.joint), "a fusion that is not late")
        # What a model is known by, and which code of users travels with it, looks at the fusion alone.
        check(not is_own(self.joint.kind), "joint", str(self.joint), "one of the fusions that there are, not your own")
