"""Size, speed and accuracy of each variant of a model beside the model itself.

    python -m benchmarks.variants [--quick]

The model answers which of ten digits a picture shows and a voice says, or a text names: scikit-learn's handwritten
digits and a tone for each digit, drawn here, so that no data are needed. It is trained for a moment in this process. A
line for each variant and figure: bytes of the files, milliseconds from the features of a row to its answer (median and
95th percentile), rows a second in batches of 64, and accuracy on the test rows, where `low` and `high` are the paired
interval of the difference. --data is not used.
"""

import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits

from benchmarks import measure
from training.bootstrap import compare
from training.building import build_model
from training.catalog import VARIANTS
from training.collator import make_collator
from training.family import Choice
from training.features import FeatureSettings
from training.processor import Processor
from training.settings import MediaLimits, ModelSettings
from training.tokenizer import fit_tokenizer
from training.variant_making import Speed, timed
from training.variants.base import load_bundle, name_of, write_variant

_FEATURES = FeatureSettings(
    image={"size": 16, "color": "grey"}, speech={"sample_rate": 4000, "mels": 16, "coefficients": 8}
)
_MODEL = ModelSettings(output=Choice("class"))
_MODALITIES = ("text", "image", "speech")
_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_CHOICES: tuple[Any, ...] = ("int8", "int8_weights", "pruned", {"kind": "pruned", "sparsity": 0.8}, "onnx")
_TEST, _BATCH = 400, 64


def rows(count: int) -> list[dict[str, Any]]:
    """Featurized; a third of them lacks each modality, none all."""
    digits, random = load_digits(), np.random.default_rng(0)
    made = []
    for n in range(count):
        digit = int(digits.target[n])
        pixels = np.kron(digits.images[n] * 15, np.ones((2, 2))).astype(np.uint8)[None]
        band = np.exp(-0.5 * ((np.arange(16) - 1.5 * digit) / 2) ** 2)
        log_mel = (band + random.normal(0, 0.7, (24, 16))).astype(np.float32)
        given = {"text": {"text": f"It is {_WORDS[digit]}, I think"}, "image": {"pixels": pixels}}
        given |= {"speech": {"log_mel": log_mel}}
        lacks = _MODALITIES[n % 3]
        row = {m: None if m == lacks else columns for m, columns in given.items()}
        made.append(row | {"sample_id": str(n), "label": str(digit), "epoch": 0})
    return made


def trained(train: list[dict[str, Any]], steps: int, folder: Path) -> None:
    """Writes the bundle of a model that has learned the rows for so many steps."""
    torch.manual_seed(0)
    tokenizer = fit_tokenizer([row["text"]["text"] for row in train if row["text"]], 300)
    model = build_model(_MODEL, _FEATURES, tokenizer, _MODALITIES, [row["label"] for row in train])
    collate = make_collator(model, tokenizer, _FEATURES)
    collate = replace(collate, targets=partial(model.output.targets, tokenizer=tokenizer))
    optimizer, random = torch.optim.AdamW(model.train().parameters(), 2e-3), np.random.default_rng(0)
    for _ in range(steps):
        loss = model(**collate([train[n] for n in random.integers(len(train), size=_BATCH)])).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    Processor(_FEATURES, MediaLimits()).save_pretrained(folder)


def measured(bundle: Path, test: list[dict[str, Any]]) -> tuple[dict[str, float], list[Any], float]:
    """Unit -> figure, the answers, and the peak memory of this process."""
    from transformers import AutoTokenizer

    model = load_bundle(bundle, torch.device("cpu"))
    tokenizer = AutoTokenizer.from_pretrained(bundle, config=model.config)
    collate = make_collator(model, tokenizer, _FEATURES)
    batches = [test[start : start + _BATCH] for start in range(0, len(test), _BATCH)]
    answers = [answer for batch in batches for answer in model.scored_answers(collate(batch), tokenizer)]
    speed: Speed = timed(model, tokenizer, _FEATURES, test)
    figures = {"bytes": float(sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file()))}
    figures |= {"ms, median": speed.milliseconds, "ms, p95": speed.milliseconds_p95, "rows/s": speed.rows_per_second}
    return figures, answers, measure.peak_mb()


def main() -> None:
    arguments = measure.parser(__doc__).parse_args()
    data = rows(_TEST + (200 if arguments.quick else 1300))
    train, test = data[_TEST:], data[:_TEST]
    with tempfile.TemporaryDirectory() as temporary:
        full = Path(temporary) / "full"
        with measure.Side() as side:
            side(trained, train, 20 if arguments.quick else 300, full)
        with measure.Side() as side:
            beside, wanted, memory = side(measured, full, test)
        metric = load_bundle(full, torch.device("cpu")).output.metric()
        labels = [row["label"] for row in test]
        for choice in map(VARIANTS.choose, _CHOICES):
            bundle = Path(temporary) / name_of(choice)
            with measure.Side() as side:
                side(write_variant, choice, full, bundle)
            with measure.Side() as side:
                ours, answers, own_memory = side(measured, bundle, test)
            compared = compare(metric, labels, answers, wanted)
            name, memories = ("variants", name_of(choice)), (own_memory, memory)
            for unit, value in ours.items():
                measure.tell(name, unit, [value], "the full model", [beside[unit]], memories)
            ends = {"rows": compared.rows, "low": round(compared.low, 4), "high": round(compared.high, 4)}
            measure.tell(name, "accuracy", [compared.a], "the full model", [compared.b], memories, **ends)


if __name__ == "__main__":
    main()
