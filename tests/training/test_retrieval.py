"""The output `embedding`: its loss, how search is judged, and that it learns which inputs belong together."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from training.catalog import OUTPUTS
from training.collator import make_collator
from training.outputs.embedding import EmbeddingOutput
from training.records import Answer, Answered
from training.retrieval_metrics import MEDIAN_RANK, RECALL_AT_1, RECALL_AT_10, WHOLE, chance, ranks
from training.schema import MODALITIES, subset_name, subsets

OUTPUT = EmbeddingOutput({})
VIEW = {view: n for n, view in enumerate(OUTPUT.views)}


def label(**contents: str) -> str:
    return str(OUTPUT.own_label(contents))


def pair_loss(a: torch.Tensor, b: torch.Tensor) -> float:
    """CLIP's, as its paper has it: the mean of both directions."""
    near, own = a @ b.T, torch.arange(len(a))
    return ((functional.cross_entropy(near, own) + functional.cross_entropy(near.T, own)) / 2).item()


def test_the_loss_is_that_of_clip_over_the_pairs_that_rows_have() -> None:
    random = torch.Generator().manual_seed(0)
    labels = [label(text=f"t{n}", image=f"i{n}") for n in range(4)]
    targets = OUTPUT.targets(labels, None)
    logits = torch.zeros(4, len(VIEW), 8)
    logits[:, VIEW["text",]], logits[:, VIEW["image",]] = torch.randn(2, 4, 8, generator=random)
    text, image = logits[:, VIEW["text",]], logits[:, VIEW["image",]]
    assert OUTPUT.loss(logits, targets).item() == pytest.approx(pair_loss(text, image))
    assert OUTPUT.loss(logits.flip(0), targets.flip(0)).item() == pytest.approx(pair_loss(text, image))

    lacks = logits.clone()
    lacks[3, VIEW["image",]] = 0
    assert OUTPUT.loss(lacks, targets).item() == pytest.approx(pair_loss(text[:3], image[:3]))
    assert OUTPUT.loss(logits[:1], targets[:1]).item() == 0, "who has nobody beside it learns nothing"

    near = text @ image.T
    near[0, 1] = near[1, 0] = -math.inf
    own = torch.arange(4)
    apart = (functional.cross_entropy(near, own) + functional.cross_entropy(near.T, own)).item() / 2
    for same in ({"text": "t1", "image": "i0"}, {"text": "t0", "image": "i1"}):
        shared = OUTPUT.targets([label(**same), *labels[1:]], None)
        assert OUTPUT.loss(logits, shared).item() == pytest.approx(apart), "equal contents are no negatives"


def test_the_loss_takes_every_subset_beside_each_other_modality() -> None:
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(3, len(VIEW), 4, generator=random)
    targets = OUTPUT.targets([label(**{m: f"{m}{n}" for m in MODALITIES}) for n in range(3)], None)
    pairs = [(("text",), "image"), (("text",), "speech"), (("image",), "speech")]
    pairs += [(tuple(m for m in MODALITIES if m != found), found) for found in MODALITIES]
    losses = [pair_loss(logits[:, VIEW[asking]], logits[:, VIEW[found,]]) for asking, found in pairs]
    assert OUTPUT.loss(logits, targets).item() == pytest.approx(float(np.mean(losses)))


def test_places_are_counted_as_by_hand_and_ties_are_lost() -> None:
    candidates = np.array([[1.0, 0], [0, 1], [0.6, 0.8], [math.nan, 0]])
    asking = np.array([[1.0, 0], [0, 1], [0.6, 0.8]])
    assert ranks(asking, candidates, [[0], [2], [3]]) == [1, 2, 4]
    assert ranks(asking, candidates, [[1, 2], [0], [0, 2]]) == [2, 3, 1]
    assert ranks(np.ones((1, 2)), np.ones((5, 2)), [[2]]) == [5], "who embeds all alike finds nothing"


def search(
    contents: list[dict[str, str]], embed: Callable[[int, tuple[str, ...]], list[float] | None]
) -> dict[str, list[Answered]]:
    """What is judged of the subsets of text and image."""
    rows = [
        Answered(str(n), subset_name(subset), OUTPUT.read(label(**given)), Answer(embed(n, subset)))
        for subset in OUTPUT.asked(["text", "image"])
        for n, given in enumerate(contents)
        if given.keys() & set(subset)
    ]
    judged: dict[str, list[Answered]] = {}
    for row in OUTPUT.judged(rows):
        judged.setdefault(row.subset, []).append(row)
    return judged


def test_search_is_judged_by_what_is_asked_and_found_beside_chance() -> None:
    count = 40
    contents = [{"text": f"t{n}", "image": f"i{n}"} for n in range(count)]
    unit = np.eye(count).tolist()

    def embed(n: int, subset: tuple[str, ...]) -> list[float]:
        return unit[n] if subset == ("text",) or n % 2 else unit[(n + 2) % count]  # every other image lies elsewhere

    judged = search(contents, embed)
    whole = judged["text+image"]
    labels, answers = [row.label for row in whole], [row.answer for row in whole]
    figures = OUTPUT.figures(labels, answers)
    assert figures["recall_at_1"].value == figures["image_to_text.recall_at_1"].value == 0.5
    assert figures["image_to_text.n"].value == count and "speech_to_text.n" not in figures
    usual = [OUTPUT.constant([])] * count
    assert RECALL_AT_10.value(labels, usual) == pytest.approx(10 / count)
    assert MEDIAN_RANK.value(labels, usual) == (count + 1) / 2
    assert RECALL_AT_1.value(labels, [None] * count) == 0 and MEDIAN_RANK.value(labels, [None] * count) == count
    alike = search(contents, lambda n, subset: unit[0])["text+image"]
    assert RECALL_AT_10.value(labels, [row.answer for row in alike]) == 0
    for subset, direction in (("text", "text_to_image"), ("image", "image_to_text")):
        asked = [row.label for row in judged[subset]]
        assert all([name for name, part in row.items() if part] == [direction] for row in asked)
        mean = RECALL_AT_10.value(labels, [row.answer for row in judged[subset]])
        alone = RECALL_AT_10.of_part(direction).value(labels, answers)
        assert alone is not None and mean == pytest.approx((alone + 10 / count) / 2), "the other way by chance"
    for metric in WHOLE:
        twice = metric.statistic(labels, answers)(np.full((count, 1), 2.0))
        assert twice[0] == metric.value(labels * 2, answers * 2) == metric.value(labels, answers)
    found = [row.answer.prediction["text_to_image"]["rank"] for row in whole]
    assert MEDIAN_RANK.of_part("text_to_image").value(labels, answers) == np.median(found)


def test_what_stands_in_several_samples_is_one_candidate_and_each_of_its_partners_is_right() -> None:
    contents = [{"text": f"t{n // 2}", "image": f"i{n}"} for n in range(6)]
    unit = np.eye(6).tolist()
    judged = search(contents, lambda n, subset: unit[n // 2 * 2])["text+image"]
    place = judged[0].label
    assert place["text_to_image"] == {"rank": 1, "candidates": 6, "right": 2}
    assert place["image_to_text"] == {"rank": 1, "candidates": 3, "right": 1}
    assert all(row.answer.prediction["image_to_text"]["rank"] == 1 for row in judged)
    assert chance(place["text_to_image"], 1) == pytest.approx(2 / 6)
    assert chance(place["text_to_image"], 2) == pytest.approx(1 - (4 / 6) * (3 / 5))
    assert chance(place["text_to_image"], 6) == 1


def test_a_subset_that_a_model_cannot_embed_finds_nothing() -> None:
    contents = [{"text": f"t{n}", "image": f"i{n}"} for n in range(3)]
    unit = np.eye(3).tolist()
    row, *_ = search(contents, lambda n, subset: None if n == 0 and subset == ("text",) else unit[n])["text+image"]
    assert row.answer.prediction["text_to_image"] is None
    assert row.answer.prediction["image_to_text"]["rank"] == 3
    row, *_ = search(contents, lambda n, subset: unit[n] if n else None)["text+image"]
    assert row.answer.prediction is None and RECALL_AT_1.of(row.label, None) == 0


def test_labels_are_what_samples_have() -> None:
    assert json.loads(label(text="a", image="b")) == {"text": "a", "image": "b"}
    assert OUTPUT.own_label({"text": "a"}) is None
    for wrong, words in (("cat", "no JSON object"), ('{"taste": "b"}', "no object of contents by modality")):
        with pytest.raises(ValueError, match=words):
            OUTPUT.read(wrong)
    with pytest.raises(ValueError, match="1 training rows have two modalities, expected two rows at least"):
        OUTPUT.fit([label(text="a", image="b")], None, None)
    for options in ({"width": 1}, {"temperature": 2.0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            OUTPUTS.choose({"kind": "embedding", **options})


def test_a_model_learns_which_inputs_belong_together(unlike_rows: Any, make_model: Any, tokenizer: Any) -> None:
    from tests.training.conftest import FEATURES

    contents = [dict.fromkeys(MODALITIES, row["label"]) for row in unlike_rows]
    unlike = [row | {"label": label(**given)} for row, given in zip(unlike_rows, contents, strict=True)]
    model, batch = make_model(unlike, output=OUTPUTS.choose({"kind": "embedding", "width": 8}))
    optimizer, start = torch.optim.Adam(model.parameters(), 3e-3), model(**batch).loss.item()
    for _ in range(60):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    assert model(**batch).loss.item() < 0.5 * start
    assert model.head.log_temperature.item() != pytest.approx(math.log(0.07)), "it is learned"
    collator = make_collator(model.eval(), tokenizer, FEATURES)
    answered = []
    for subset in OUTPUT.asked(MODALITIES):
        said = model.scored_answers(replace(collator, keep=frozenset(subset))(unlike), tokenizer)
        for row, answer in zip(unlike, said, strict=True):
            assert np.linalg.norm(answer.prediction) == pytest.approx(1) and len(answer.prediction) == 8
            answered.append(Answered(row["sample_id"], subset_name(subset), OUTPUT.read(row["label"]), answer))
    judged = OUTPUT.judged(answered)[-12:]
    figures = OUTPUT.figures([row.label for row in judged], [row.answer for row in judged])
    assert set(subsets(MODALITIES)[:-1]) == set(OUTPUT.views)
    for asking in ("text", "text_image", "image_speech"):
        found = next(m for m in MODALITIES if m not in asking.split("_"))
        assert figures[f"{asking}_to_{found}.recall_at_1"].value > 0.7, "by chance it is 0.08"
