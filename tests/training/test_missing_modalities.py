"""Training rows that lack modalities in any pattern, also such that none has all: every fusion learns from what there
is, with the default `modality_dropout`, and answers whatever it is then given."""

import itertools
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from training.building import build_model
from training.catalog import FUSIONS
from training.collator import make_collator
from training.features import FeatureSettings
from training.model import FusionModel
from training.settings import ModelSettings
from training.tokenizer import fit_tokenizer

MODALITIES = ("text", "image", "speech")
FEATURES = FeatureSettings(
    text={"max_tokens": 20}, image={"size": 8, "color": "grey"}, speech={"mels": 8, "coefficients": 4}
)
TOKENIZER = fit_tokenizer(["it is high", "it is low", "high", "low"] * 3, 300)
SUBSETS = [frozenset(s) for n in (1, 2, 3) for s in itertools.combinations(MODALITIES, n)]
AT_ONCE = "attention", "concat", "gated", "logit", "low_rank"  # one of each way to read what is there
PATTERNS = {
    "never two together": [s for s in SUBSETS if len(s) == 1],
    "never three together": [s for s in SUBSETS if len(s) == 2],
}


def make_rows(subsets: list[frozenset[str]], seed: int) -> list[dict[str, Any]]:
    """Eight rows for each subset; each of their modalities tells the label, high or low."""
    random, rows = np.random.default_rng(seed), []
    for n, subset in enumerate(subsets * 8):
        label, side = [("high", 1), ("low", -1)][n // len(subsets) % 2]
        pixels = np.clip(128 + side * 80 + random.normal(0, 10, (1, 8, 8)), 0, 255).astype(np.uint8)
        frames = side + random.normal(0, 0.2, (int(random.integers(4, 12)), 8))
        whole = {
            "text": {"text": f"it is {label}", "input_ids": np.zeros(1, np.int32)},
            "image": {"pixels": pixels},
            "speech": {"log_mel": frames.astype(np.float32)},
        }
        row = {m: whole[m] if m in subset else None for m in MODALITIES}
        rows.append({**row, "sample_id": str(n), "label": label, "epoch": 0})
    return rows


def train(fusion: str, rows: list[dict[str, Any]]) -> FusionModel:
    torch.manual_seed(0)
    settings: dict[str, Any] = {"output": "class", "width": 16, "layers": 1, "heads": 2, "tokens": 2}
    model = build_model(ModelSettings(fusion=fusion, **settings), FEATURES, TOKENIZER, MODALITIES, ["high", "low"])  # type: ignore[arg-type]
    model.train()
    collator = make_collator(model, TOKENIZER, FEATURES)
    collator.targets = partial(model.output.targets, tokenizer=TOKENIZER)
    collator.modality_dropout = ModelSettings().modality_dropout  # a part of what rows have is then known, too
    batches = [collator([row | {"epoch": epoch} for row in rows]) for epoch in range(6)]
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for step in range(60):
        optimizer.zero_grad()
        model(**batches[step % 6]).loss.backward()
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize(
    "fusion", [name if name in AT_ONCE else pytest.param(name, marks=pytest.mark.slow) for name in FUSIONS.names()]
)
def test_any_pattern_of_missing_modalities(fusion: str, pattern: str) -> None:
    model = train(fusion, make_rows(PATTERNS[pattern], 0))
    test = make_rows(SUBSETS, 1)
    answers = model.answer(make_collator(model, TOKENIZER, FEATURES)(test), TOKENIZER)
    assert set(answers) == {"high", "low"}
    right = dict.fromkeys(SUBSETS, 0)
    for row, answer in zip(test, answers, strict=True):
        right[frozenset(m for m in MODALITIES if row[m] is not None)] += answer == row["label"]
    # What no row had together is only sure where modalities are read one by one, or each pair of them is known.
    sure = PATTERNS[pattern] if pattern == "never two together" and not model.fusion.late else SUBSETS
    assert {subset: right[subset] for subset in sure} == dict.fromkeys(sure, 8)
