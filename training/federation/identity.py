"""What coordinator and silos have to have in common, as a hash of each section of the project file."""

from typing import Any

from training.federation.wire import PROTOCOL
from training.processor import Processor
from training.schema import fingerprint
from training.spec import JobSpec, RunSpec, identity, training_identity

# How long and how often is for the federation to say, or each one's own matter.
_OWN = ("epochs", "evaluations", "early_stopping", "metric", "seed")


def parts_of(spec: JobSpec, run: RunSpec) -> dict[str, str]:
    """Section -> hash."""
    settings = run.federation
    assert settings is not None
    processor = Processor(spec.features, spec.limits)
    features = {m: [processor.fingerprint(m), spec.features.at_batch(m)] for m in settings.modalities}
    trained = {name: value for name, value in training_identity(run.training).items() if name not in _OWN}
    several: Any = {m: places for m, places in run.several.items() if m in settings.modalities}
    return {
        "model": fingerprint(identity(run.model)),
        "training": fingerprint(trained),
        "features": fingerprint(features, several),
        "federation": fingerprint(PROTOCOL, settings.shared()),
    }
