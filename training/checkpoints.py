"""The checkpoints of a training: whose they are, and the newest one that is whole."""

import json
import shutil
from pathlib import Path

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from training.files import write_text

_WHOLE = ("model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json")
_RANDOM = "rng_state*.pth"  # one of each process


def claim(folder: Path, identity: str) -> None:
    """Marks the folder as this training's; raises ValueError where it is another's."""
    folder.mkdir(parents=True, exist_ok=True)
    marker = folder / "training.json"
    if marker.exists():
        if json.loads(marker.read_text())["identity"] != identity:
            raise ValueError(
                f"{folder} holds checkpoints of another training (other settings or rows, or launcher.shard): delete it"
            )
        return
    write_text(marker, json.dumps({"identity": identity}))


def last_checkpoint(folder: Path) -> str | None:
    """The newest whole checkpoint; what a killed process left unfinished is removed."""
    paths = sorted(folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    for path in reversed(paths):
        if _is_whole(path):
            return str(path)
        shutil.rmtree(path)
    return None


def _is_whole(checkpoint: Path) -> bool:
    if not all((checkpoint / name).is_file() for name in _WHOLE) or not any(checkpoint.glob(_RANDOM)):
        return False
    try:  # the Trainer writes this file last
        json.loads((checkpoint / "trainer_state.json").read_text())
    except ValueError:
        return False
    return True
