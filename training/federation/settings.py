"""What the project file says under `federation`: how silos that may not be joined train one model. Needs no torch.

All of them, and the coordinator, have the same `model`, `training`, `features` and `federation`, but for where things
are (`listen`, `coordinator`, `silo`).
"""

import re
from dataclasses import dataclass, field
from typing import Any

from training.catalog import AGGREGATIONS, COMBINATIONS, OBJECTIVES
from training.family import Choice, identity
from training.features import FeatureSettings
from training.outputs.base import Output
from training.schema import MODALITIES
from training.settings import ModelSettings, TrainingSettings, choose
from training.validation import FORBID_EXTRA, Strings, check, to_dict

TOKEN = "TRIPTYCH_FEDERATION_TOKEN"  # the variable of the environment with the coordinator's secret, or a silo's token
_OWN = ("listen", "coordinator", "silo", "silos", "least", "wait_seconds", "silent_seconds", "round_seconds")
_LEAST_HIDDEN = 3  # silos of a sum that is to hide each: of two, each knows the other's


@dataclass(frozen=True, kw_only=True)
class PrivacySettings:
    """Differential privacy of each training row (DP-SGD, Abadi et al. 2016): what leaves a silo depends on no single
    row by more than epsilon and delta say. It is that of rows, and not of people who have several."""

    __pydantic_config__ = FORBID_EXTRA
    noise: float = 1.0  # deviation of what is added to the sum of a batch's gradients, in units of `clip`
    clip: float = 1.0  # the longest gradient that a row may have
    delta: float = 1e-5  # of (epsilon, delta): below 1 / rows
    most: float | None = None  # epsilon that a silo spends at most: it then takes part no more; null: any

    def __post_init__(self) -> None:
        check(self.noise > 0, "noise", self.noise, "over 0")
        check(self.clip > 0, "clip", self.clip, "over 0")
        check(0 < self.delta < 1, "delta", self.delta, "over 0 and below 1")
        check(self.most is None or self.most > 0, "most", self.most, "null or over 0")


@dataclass(frozen=True, kw_only=True)
class FederationSettings:
    __pydantic_config__ = FORBID_EXTRA
    silos: Strings  # the names of all that may take part
    # HOST:PORT where this project's coordinator listens: its model is then trained by the silos. null: no coordinator
    listen: str | None = None
    coordinator: str | None = None  # the URL of the coordinator that this silo asks; null: no silo
    silo: str | None = None  # which of `silos` this one is
    modalities: Strings = ()  # that the model reads, also where a silo has none of one; none: those of the sources
    # What answers may be, beside those of the coordinator's own training rows. That a silo has rows of an answer tells
    # something of its rows, so silos say theirs only if `share_labels`.
    labels: Strings = ()
    share_labels: bool = False
    rounds: int = 20
    epochs: float = 1.0  # over a silo's own rows, in each round
    least: int = 2  # silos of a round; with fewer it is repeated
    wait_seconds: float = 600.0  # for `silos` at the start, and for enough of them later
    silent_seconds: float = 30.0  # a silo that says nothing for so long is left out until it is there again
    round_seconds: float = 3600.0  # a silo that takes longer for a round is left out of it
    aggregation: Choice = field(default_factory=lambda: Choice("fedavg"))
    combination: Choice = field(default_factory=lambda: Choice("krum"))
    secure: bool = False  # the coordinator sees the sum of what silos learned, and not what each has
    privacy: PrivacySettings | None = None
    # Count up for another training by the same settings: what rows silos have by now is not known here.
    number: int = 1

    def __post_init__(self) -> None:
        choose(self, "aggregation", AGGREGATIONS)
        choose(self, "combination", COMBINATIONS)
        for name in self.silos:
            is_name = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", name) is not None
            check(is_name, "silos", name, "names of letters, digits, _ . and -")
        check(len(set(self.silos)) == len(self.silos), "silos", list(self.silos), "each name once")
        check(len(self.silos) >= 2, "silos", list(self.silos), "at least two names: one alone needs no federation")
        for modality in self.modalities:
            check(modality in MODALITIES, "modalities", modality, f"modalities ({', '.join(MODALITIES)})")
        check(2 <= self.least <= len(self.silos), "least", self.least, f"2 to the number of silos ({len(self.silos)})")
        check(self.rounds >= 1, "rounds", self.rounds, "at least 1")
        check(self.number >= 1, "number", self.number, "at least 1")
        for name in ("epochs", "wait_seconds", "silent_seconds", "round_seconds"):
            check(getattr(self, name) > 0, name, getattr(self, name), "over 0")
        alone = self.listen is None or self.coordinator is None
        check(alone, "coordinator", self.coordinator, "null beside listen: a process is the coordinator, or asks one")
        if self.listen is not None:
            check(_is_address(self.listen), "listen", self.listen, "HOST:PORT, such as 127.0.0.1:8765")
        if self.coordinator is not None:
            self._check_silo()
        if self.secure:
            self._check_secure()

    def _check_silo(self) -> None:
        url = str(self.coordinator)
        check(re.match(r"https?://[^/@\s]+", url) is not None, "coordinator", url, "a URL, such as https://HOST")
        check(
            url.startswith("https://") or is_loopback(url),
            "coordinator",
            url,
            "https://: the token and what is learned would cross a network unencrypted. A proxy with a certificate "
            "stands before the coordinator there",
        )
        check(self.silo in self.silos, "silo", self.silo, f"one of federation.silos ({', '.join(self.silos)})")

    def _check_secure(self) -> None:
        sums = COMBINATIONS.load(self.combination.kind).of_sums
        kind = str(self.combination)
        check(sums, "combination", kind, "mean where `secure` hides what each silo learned: others look at each")
        check(self.least >= _LEAST_HIDDEN, "least", self.least, f"at least {_LEAST_HIDDEN} where `secure` is true")

    @property
    def hides(self) -> bool:
        """Whether numbers of a silo's rows stay in it: losses, counts of right answers."""
        return self.secure or self.privacy is not None

    def shared(self) -> dict[str, Any]:
        """What coordinator and silos have to agree on, as plain values; own kinds are known by their code."""
        plain = {name: value for name, value in to_dict(self).items() if name not in _OWN}
        return plain | {"aggregation": identity(self.aggregation), "combination": identity(self.combination)}


def is_loopback(url: str) -> bool:
    host = re.sub(r"^\w+://", "", url).partition("/")[0].rpartition(":")[0].strip("[]") or url
    return host == "localhost" or host.startswith("127.") or host == "::1"


def _is_address(words: str) -> bool:
    host, _, port = words.rpartition(":")
    return bool(host) and port.isdecimal() and int(port) < 2**16


def check_federation(
    settings: FederationSettings,
    model: ModelSettings,
    training: TrainingSettings,
    features: FeatureSettings,
    output: Output,
    launcher: str,
    pairing: object,
) -> None:
    """Raises ValueError where the rest of the project file asks for what silos cannot do."""
    for modality in settings.modalities:
        compressed = features.compressed(modality)
        expected = "one that is not fitted (int8, float16): each silo would fit its own"
        is_fixed = compressed is None or compressed.is_ready
        check(is_fixed, f"features.{modality}.compression", features.plain().get(modality), expected)
    if settings.privacy is not None:
        kinds = [choice.kind for choice in training.objectives]
        alone = "answer alone beside federation.privacy: others learn from what rows have beside one another"
        check(kinds == ["answer"], "training.objectives", kinds, alone)
        expected = "null or 0 beside federation.privacy: a row would be part of another's gradient"
        check(not training.mixing, "training.mixing", training.mixing, expected)
        drawn = getattr(pairing, "draw", "once")
        expected = "once beside federation.privacy: a row would be trained with another's contents"
        check(drawn == "once", "align.pairing.draw", drawn, expected)
        adversary = training.adversary
        check(adversary is None, "training.adversary", str(adversary), "null beside federation.privacy")
    kind = model.output.kind
    expected = "one whose answers have labels: silos learn by them"
    check(output.has_labels and not output.answers_with, "model.output", kind, f"{expected} (not {kind})")
    weights = getattr(getattr(output, "options", None), "weights", "none")
    check(weights != "balanced", "model.output.weights", weights, "none: the rows of a class lie in silos")
    share = model.linear_share
    check(not share, "model.linear_share", share, "null or 0: it is fitted on all rows at once, which nobody has here")
    check(launcher == "subprocess", "launcher", launcher, "subprocess: processes do not train together with silos")
    teachers = [str(one) for one in training.objectives if hasattr(OBJECTIVES.options(one), "teacher")]
    check(not teachers, "training.objectives", ", ".join(teachers), "others: no teacher knows the rows of silos")
    if settings.listen is not None:
        stops = training.early_stopping
        check(stops is None, "training.early_stopping", stops, "null: `federation.rounds` says how long silos train")
