"""Several answers at once: what a row lacks counts for nothing, and each answer is measured and sure by itself."""

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from training.bootstrap import compare
from training.calibration import calibrate
from training.catalog import OUTPUTS
from training.evaluate import as_answers, coverage, measure, telling_columns
from training.records import Answer
from training.schema import DATASET, predictions_schema
from training.settings import ModelSettings

LABELS = [
    {"drink": "tea", "price": "1"},
    {"drink": "cola", "price": "3"},
    {"drink": "tea"},
    {"price": "5"},
]


def several(**outputs: Any) -> Any:
    settings = ModelSettings(outputs=outputs or {"drink": "class", "price": "number"})
    output = OUTPUTS.make(settings.output, {})
    labels = [json.dumps({n: v for n, v in label.items() if n in output.members}) for label in LABELS]
    return OUTPUTS.make(settings.output, output.fit(labels, None, settings))


def test_what_a_row_lacks_moves_nothing() -> None:
    output = several()
    targets = output.targets([json.dumps(label) for label in [*LABELS, {"drink": "unheard"}]], None)
    assert targets.isnan().tolist() == [[False, False]] * 2 + [[False, True], [True, False], [True, True]]
    logits = torch.zeros(5, 3, requires_grad=True)
    loss = output.loss(logits, targets)
    # A class that is guessed evenly costs log 2 nats, prices that are all answered by their mean their variance.
    assert loss.item() == pytest.approx((math.log(2) / math.log(2) + 1) / 2)
    loss.backward()
    assert logits.grad is not None
    assert (logits.grad != 0).tolist() == [[True] * 3, [True, True, False], [True, True, False],
                                           [False, False, True], [False] * 3]  # fmt: skip
    nothing = output.loss(logits, targets[4:].expand(5, -1))
    assert nothing.item() == 0 and nothing.requires_grad


def test_figures_are_over_the_rows_that_have_a_label() -> None:
    output = several()
    labels = [output.read(json.dumps(label)) for label in LABELS]
    said = [{"drink": "tea", "price": 1.0}, {"drink": "tea", "price": 2.0}, {"drink": "tea", "price": 9.0}, None]
    figures = output.figures(labels, said)
    assert figures["drink.accuracy"].value == pytest.approx(2 / 3) and figures["drink.n"].value == 3
    assert figures["price.n"].value == 3
    # No answer is as far off as can be: 4 from the price of 5.
    assert figures["price.mae"].value == pytest.approx((0 + 1 + 4) / 3)
    assert figures["price.r2"].value == pytest.approx(1 - (0 + 1 + 16) / 8)
    assert figures["mean_score"].value == pytest.approx((2 / 3 + 0) / 2), "worse than the mean is nothing"
    assert next(iter(figures)) == "mean_score" and "exact_match" not in figures, "no number is right or wrong"
    both = several(drink="class", price="class")
    said_both = [{"drink": "tea", "price": "1"}, {"drink": "cola", "price": "1"}, {"drink": "tea", "price": "1"}, None]
    found = both.figures([both.read(json.dumps(label)) for label in LABELS], said_both)
    assert found["exact_match"].value == 0.5 and found["mean_score"].value == pytest.approx((1 + 1 / 3) / 2)
    compared = compare(output.metric("drink.accuracy"), labels, said, [None] * 4)
    assert (compared.rows, compared.a, compared.b, compared.differ) == (3, pytest.approx(2 / 3), 0, 2)
    compared = compare(output.metric("price.mae"), labels, said, [None] * 4)
    assert compared.rows == 3 and compared.difference == pytest.approx(compared.b - compared.a) and compared.b > 2
    with pytest.raises(ValueError, match=r"no row has a label of drink, so drink\.accuracy cannot be compared"):
        compare(output.metric("drink.accuracy"), labels[3:], said[3:], said[3:])


def test_the_mean_is_of_what_can_be_said_of_a_resample() -> None:
    output = several()
    metric, labels = output.metric(), [output.read(json.dumps(label)) for label in LABELS]
    said = [{"drink": "tea", "price": float(n)} for n in range(4)]
    of = metric.statistic(*metric.mine(labels, said))
    counts = np.array([[1, 1, 1, 1], [0, 0, 1, 0], [2, 1, 0, 1]], np.float32).T
    whole, one, drawn = of(counts)
    assert whole == metric.value(labels, said) and one == 1, "of the third row nothing but the drink is known"
    rows = [0, 0, 1, 3]
    assert drawn == pytest.approx(metric.value([labels[n] for n in rows], [said[n] for n in rows]))


def answers() -> list[Answer]:
    def one(drink: str, chance: float, price: float) -> Answer:
        parts = {"drink": Answer(drink, chance, ((drink, chance), ("water", 1 - chance))), "price": Answer(price)}
        return Answer({name: part.prediction for name, part in parts.items()}, chance, parts=parts)

    return [one("tea", 0.9, 1.0), one("tea", 0.6, 2.0), one("cola", 0.5, 3.0), one("tea", 0.8, 4.0)]


def test_tables_hold_several_answers_and_what_is_known_of_each() -> None:
    output, said = several(), answers()
    rows = [
        {"sample_id": str(n), "subset": "text", "label": output.read(json.dumps(label)), "prediction": a.prediction}
        | {"probability": a.probability, "best": a.best_rows(), "parts": a.part_rows()}
        for n, (label, a) in enumerate(zip(LABELS, said, strict=True))
    ]
    table = pa.Table.from_pylist(rows, predictions_schema(output.arrow_type))
    assert [Answer.from_row(row) for row in as_answers(table, output).to_pylist()] == said
    (row,) = measure(table, ["text"], output)
    assert row.metrics["drink.accuracy"].value == pytest.approx(1 / 3) and row.n == 4
    # A champion of before that answered one of the two, and something else.
    other = several(drink="class", price="class")
    seen = as_answers(table, other)["prediction"].to_pylist()
    assert seen[0] == {"drink": "tea", "price": "1.0"}


def test_each_answer_is_withheld_by_itself() -> None:
    told = [answer.to_json(abstain_below=0.7, best=1) for answer in answers()]
    assert [row["prediction"]["drink"] for row in told] == ["tea", None, None, "tea"]
    assert told[1]["prediction"]["price"] == 2.0 and [row["abstained"] for row in told] == [False, True, True, False]
    assert told[1]["outputs"]["drink"] == {"prediction": None, "probability": 0.6, "abstained": True,
                                           "best": [{"answer": "tea", "probability": 0.6}]}  # fmt: skip
    output = several()
    labels = [output.read(json.dumps(label)) for label in LABELS]
    every, some = coverage(output.metric("drink.accuracy"), labels, answers(), [0.0, 0.7])
    assert (every.rows, every.of, every.value) == (3, 3, pytest.approx(1 / 3)), "of the fourth no drink is known"
    assert (some.rows, some.value, some.metric) == (1, 1.0, "drink.accuracy")


def test_each_has_a_temperature_of_its_own(rows: Any, make_model: Callable[..., Any], tokenizer: Any) -> None:
    outputs = {"a": "class", "b": "class", "n": "number"}
    model, batch = make_model(rows, output=ModelSettings(outputs=outputs).output)
    model.eval()
    with torch.no_grad():
        model.head.linear.weight[:2] *= 30  # of a: it is far too sure
        chances = model(**batch).logits.split([2, 2, 1], 1)[1].softmax(-1)
    drawn = torch.multinomial(chances, 40, replacement=True, generator=torch.Generator().manual_seed(0)).T.flatten()
    labels = [json.dumps({"a": "79"[n % 2], "b": "79"[b], "n": n}) for n, b in enumerate(drawn.tolist())]
    labels[0] = json.dumps({"n": 1})
    before = model.scored_answers(batch, tokenizer)
    calibrate(model, [batch] * 40, labels, tokenizer)
    a, b, n = model.output.members.values()
    assert a.temperature > 5 and b.temperature < 3 and n.temperature == 1
    assert model.config.fitted["members"]["b"]["calibration_rows"] == 40 * len(rows) - 1
    after = model.scored_answers(batch, tokenizer)
    assert [x.prediction for x in before] == [x.prediction for x in after]
    for x, y in zip(before, after, strict=True):
        assert x.part("a").probability > y.part("a").probability
        assert y.probability == pytest.approx(y.part("a").probability * y.part("b").probability)


def test_what_is_read_off_has_not_seen_the_text_behind_it(rows: Any, make_model: Callable[..., Any]) -> None:
    output = ModelSettings(outputs={"note": "text", "a": "class"}).output
    labels = [{"a": "79"[n % 2], "note": "nine seven"} for n in range(len(rows))]
    del labels[1]["note"], labels[2]["a"]

    def said(labels: list[dict[str, str]]) -> tuple[Any, Any, Any]:
        asked = [row | {"label": json.dumps(label)} for row, label in zip(rows, labels, strict=True)]
        model, batch = make_model(asked, output=output)
        return model, batch, model.eval()(**batch).logits

    model, batch, logits = said(labels)
    model.output.members["note"].entropy = 3.0
    classes, texts = logits[:, :2], logits[:, 2:].unflatten(1, (-1, model.config.llm_config.vocab_size))
    torch.testing.assert_close(said([{**label, "note": "7"} for label in labels])[2][:, :2], classes)
    torch.testing.assert_close(model(**{n: t for n, t in batch.items() if n != "labels"}).logits, classes)
    # What a row lacks counts for nothing; a class that is guessed costs log 2, a text what its tokens are spread over.
    model.output.loss(logits, batch["labels"]).backward()
    wanted, tokens = batch["labels"][:, 0], batch["labels"][:, 1:]
    assert wanted.isnan().tolist() == [n == 2 for n in range(len(rows))] and tokens[1].isnan().all()
    known = [n for n in range(len(rows)) if n != 2]
    a = torch.nn.functional.cross_entropy(classes[known], wanted[known].long()) / math.log(2)
    known = [n for n in range(len(rows)) if n != 1]
    note = torch.nn.functional.cross_entropy(texts[known].transpose(1, 2), tokens[known].long()) / 3
    torch.testing.assert_close(model.output.loss(logits, batch["labels"]), (a + note) / 2)
    missing = batch["labels"].masked_fill(torch.ones_like(batch["labels"]).bool(), math.nan)
    assert model.output.loss(logits, missing).item() == 0


def test_a_text_among_several_is_written_and_measured_as_by_itself(
    rows: Any, make_model: Callable[..., Any], tokenizer: Any
) -> None:
    model, batch = make_model(rows, output=ModelSettings(outputs={"note": "text", "a": "class"}).output)
    alone, _ = make_model(rows, output="text")
    alone.load_state_dict(model.eval().state_dict(), strict=False)
    said = model.scored_answers(batch, tokenizer)
    for one, other in zip(said, alone.eval().scored_answers(batch, tokenizer), strict=True):
        note = one.part("note")
        assert (note.prediction, note.best) == (other.prediction, other.best)
        assert one.prediction == {"a": one.part("a").prediction, "note": other.prediction}
        assert one.probability == pytest.approx(note.probability * one.part("a").probability)
    labels = [json.dumps({"note": one.prediction["note"]} if n else {"a": "7"}) for n, one in enumerate(said)]
    told = model.surprises(batch, tokenizer, labels, [1.0, 5.0])
    assert told.shape == (2, 2, len(rows)) and (told[0] != 0).any(0).tolist() == [n == 0 for n in range(len(rows))]
    chances = [max(1e-6, one.part("note").probability) for one in said[1:]]  # no row outweighs all others
    assert (-told[1, 0, 1:]).exp().tolist() == pytest.approx(chances)
    assert told[1, :, 0].tolist() == [0, 0]
    metrics = model.output.figures([model.output.read(label) for label in labels], said)
    assert metrics["note.accuracy"].value == metrics["note.token_f1"].value == 1 and metrics["note.n"].value == 6
    assert metrics["mean_score"].value == (1 + metrics["a.accuracy"].value) / 2


def test_several_texts_are_learned_and_written_each_behind_its_name(
    rows: Any, make_model: Callable[..., Any], tokenizer: Any
) -> None:
    labels = [{"a": "79"[n % 2], "note": "nine", "the title": "seven"} for n in range(len(rows))]
    del labels[0]["note"], labels[1]["the title"]
    asked = [row | {"label": json.dumps(label)} for row, label in zip(rows, labels, strict=True)]
    output = ModelSettings(outputs={"note": "text", "the title": "text", "a": "class"}).output
    model, batch = make_model(asked, output=output)
    size, room = model.config.llm_config.vocab_size, model.prompt_room
    tokens = model.output._tokens(batch["labels"])
    assert tokens.shape[:2] == (len(rows), 2) and (tokens[1, 1] == -100).all() and (tokens[1, 0] != -100).any()
    logits = model.eval()(**batch).logits
    changed = batch["labels"].clone()
    changed[:, -1] = changed[:, -tokens.shape[2]] = 5  # of the title
    other = model(**batch | {"labels": changed}).logits
    unmoved = 2 + tokens.shape[2] * size
    torch.testing.assert_close(other[:, :unmoved], logits[:, :unmoved])
    assert room is None or room == make_model(rows, output="text")[0].prompt_room - model.output.opening
    optimizer = torch.optim.AdamW(model.parameters(), 2e-2)
    for _ in range(20):
        optimizer.zero_grad()
        model.train()(**batch).loss.backward()
        optimizer.step()
    said = model.eval().scored_answers(batch, tokenizer)
    assert [one.prediction for one in said] == [
        {"a": label["a"], "note": "nine", "the title": "seven"} for label in labels
    ]
    parts = [one.part(name).probability for one in said[:1] for name in model.output.members]
    assert said[0].probability == pytest.approx(math.prod(parts)) and len(parts) == 3
    told = model.surprises(batch, tokenizer, [json.dumps(label) for label in labels], [1.0, 5.0])
    assert (told == 0).any(1).tolist() == [[False] * 7, [True] + [False] * 6, [False, True] + [False] * 5]
    calibrate(model, [batch], [json.dumps(label) for label in labels], tokenizer)
    assert [m["calibration_rows"] for m in model.config.fitted["members"].values()] == [7, 6, 6]


def test_a_column_that_gives_one_of_several_labels_away_is_no_slice() -> None:
    settings = ModelSettings(outputs={"drink": "class", "size": "class"})
    output = OUTPUTS.make(settings.output, {})
    rows = [
        {"sample_id": str(n), "label": json.dumps({"drink": "ab"[n % 2], "size": str(n % 5)}), "text_id": "t"}
        | {"attributes": json.dumps({"code": n % 2, "kind": n % 3})}
        for n in range(60)
    ]
    assert telling_columns(pa.Table.from_pylist(rows, DATASET), output) == ["code"]


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("tea", "it is no JSON object"),
        ('["tea"]', "it is JSON, and no object"),
        ('{"price": "much"}', "price: it is no number"),
    ],
)
def test_a_label_that_cannot_be_read_is_named(label: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        several().read(label)


def test_an_output_without_labels_is_named() -> None:
    settings = ModelSettings(outputs={"drink": "class", "size": "class"})
    with pytest.raises(ValueError, match=r"outputs\.size: output is 'class' and there are no classes"):
        OUTPUTS.make(settings.output, {}).fit(['{"drink": "tea"}'], None, settings)
