"""The contract of outputs, over every kind of the catalogue and one of a user's own."""

import math
import multiprocessing
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from training.catalog import OUTPUTS
from training.family import Choice
from training.model import FusionModel
from training.records import Answer, Answered
from training.schema import MODALITIES, subset_name

SEVERAL = {"kind": "several", "outputs": {"sign": "class", "size": "number", "all tags": "multi_label"}}
WITH_TEXT = {"kind": "several", "outputs": {"note": "text", "sign": "class", "size": "number"}}
TEXTS = {"kind": "several", "outputs": {"note": "text", "the title": "text"}}
WRITTEN = ("image", "speech", "contents")  # by codecs: test_contents_output.py
OTHERS = [kind for kind in OUTPUTS.names() if kind not in WRITTEN]
KINDS = [*(SEVERAL if kind == "several" else kind for kind in OTHERS), WITH_TEXT, TEXTS, "own_kinds:OwnOutput"]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(params=KINDS, ids=str)
def kind(request: pytest.FixtureRequest, own_kinds: Path) -> Any:
    return request.param


@pytest.fixture
def labels(kind: Any, label_of: Callable[..., str]) -> tuple[str, str]:
    """7 and 9 as the kind reads them."""
    return label_of(OUTPUTS.choose(kind), "7"), label_of(OUTPUTS.choose(kind), "9")


def fitted(kind: Any, tokenizer: Any, seven: str, nine: str) -> Any:
    from training.settings import ModelSettings

    choice = OUTPUTS.choose(kind)
    learned = OUTPUTS.make(choice, {}).fit([seven, nine, seven], tokenizer, ModelSettings(output=choice))
    return OUTPUTS.make(choice, learned)


def test_ours_are_checked_without_torch() -> None:
    code = "import sys; from training.catalog import OUTPUTS\n"
    code += "print([metric.name for kind in OUTPUTS.names() for metric in OUTPUTS.load(kind).metrics])\n"
    code += "sys.exit(bool({'torch', 'transformers', 'scipy', 'mlflow'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_labels_are_read_as_the_type_that_tables_hold(kind: Any, labels: Any, tokenizer: Any) -> None:
    output = fitted(kind, tokenizer, *labels)
    asked = subset_name(output.asked(MODALITIES)[-1])
    rows = [Answered(str(n), asked, output.read(label), Answer(None)) for n, label in enumerate(labels)]
    values = [row.label for row in output.judged(rows)]
    assert pa.array(values, output.judged_type).to_pylist() == values
    assert pa.array([output.constant([*values, values[0]])], output.judged_type).null_count == 0
    assert asked == subset_name(MODALITIES)


def test_the_right_answer_is_the_best_and_none_the_worst(kind: Any, labels: Any, tokenizer: Any) -> None:
    output = fitted(kind, tokenizer, *labels)
    if output.views:
        pytest.skip("its answers are right or wrong beside others: test_retrieval.py")
    right, wrong = map(output.read, labels)
    for metric in output.metrics:
        sign, given = 1 if metric.higher_is_better else -1, [right, wrong] * 4
        said = ([right, wrong] * 4, [right, right] * 4, [wrong, right] * 4, [None] * 8)
        best, half, wrongs, nothing = (sign * metric.value(given, answers) for answers in said)
        assert best > half >= wrongs
        assert best > nothing <= wrongs or metric.of_probabilities, "who says nothing claims nothing"
    figures = output.figures([right, wrong] * 4, [right, right] * 4)
    assert list(figures)[: len(output.metrics)] == [metric.name for metric in output.metrics]
    for metric in output.metrics:
        figure = figures[metric.name]
        assert figure.low <= figure.value <= figure.high
    assert output.metric() is output.metrics[0] is output.metric(output.metrics[0].name)


def test_gradients_reach_every_parameter(
    kind: Any, rows: Any, unlike_rows: Any, make_model: Callable[..., Any]
) -> None:
    model, _ = make_model(rows, output=kind)
    if model.output.views:  # nothing tells apart what is the same
        rows = unlike_rows[:7]
    model.train()
    waiting = {name for name, p in model.named_parameters() if p.requires_grad}
    for part in (rows[:3], rows[3:6], rows[6:] * 2, rows):
        _, batch = make_model(part, output=kind)
        loss = model(**batch).loss
        assert loss.shape == () and loss.isfinite()
        model.zero_grad()
        loss.backward()
        waiting -= {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        with torch.no_grad():
            for p in model.parameters():
                p -= 0 if p.grad is None else 0.01 * p.grad.sign()
    assert not waiting, f"never trained: {sorted(waiting)}"


def test_training_on_the_targets_brings_the_answers_nearer(
    kind: Any, labels: Any, rows: Any, make_model: Callable[..., Any], tokenizer: Any
) -> None:
    rows = [rows[0] | {"label": labels[1]}, rows[1] | {"label": labels[0]}]
    model, batch = make_model(rows, output=kind)
    if model.output.views:
        pytest.skip("it is trained on what rows have together: test_retrieval.py")
    model.eval()
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(40):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    answers = model.answer(batch, tokenizer)
    assert pa.array(answers, model.output.arrow_type).null_count == 0 and len(answers) == 2
    right = [model.output.read(row["label"]) for row in rows]
    metric = model.output.metric()
    assert metric.value(right, answers) == pytest.approx(metric.value(right, right), abs=0.5)


def test_a_row_is_answered_alone_as_in_a_batch(
    kind: Any, rows: Any, make_model: Callable[..., Any], tokenizer: Any
) -> None:
    model, batch = make_model(rows, output=kind)
    together = model.eval().answer(batch, tokenizer)
    for row, answer in zip(rows, together, strict=True):
        alone = model.answer(make_model([row], output=kind)[1], tokenizer)
        for a, b in zip(*map(by_name, (alone[0], answer)), strict=True):
            assert a == b or a == pytest.approx(b, abs=1e-4)


@pytest.mark.parametrize("fusion", ["attention", "logit"])
def test_loss_and_answers_come_of_one_reading(
    fusion: str, kind: Any, rows: Any, make_model: Callable[..., Any], tokenizer: Any
) -> None:
    model, batch = make_model(rows, output=kind, fusion=Choice(fusion))
    read: list[int] = []
    model.eval().llm.base_model.register_forward_hook(lambda _module, _inputs, said: read.append(said[0].shape[1]))
    loss, answers = model.loss_and_answers(batch, tokenizer)
    once = sum(read)
    with torch.inference_mode():
        torch.testing.assert_close(model(**batch).loss, loss)
    for one, other in zip(model.scored_answers(batch, tokenizer), answers, strict=True):
        for a, b in zip(*map(by_name, (one.prediction, other.prediction)), strict=True):
            assert a == b or a == pytest.approx(b, abs=1e-4)
        assert one.probability == (other.probability and pytest.approx(other.probability, abs=1e-4))
    is_ours = not str(kind).startswith("own_kinds") and not model.output.views
    assert once < sum(read) - once or not is_ours


def test_a_saved_model_answers_the_same(
    kind: Any, rows: Any, make_model: Callable[..., Any], tokenizer: Any, tmp_path: Path
) -> None:
    model, batch = make_model(rows, output=kind)
    model.eval().save_pretrained(tmp_path)
    loaded = FusionModel.from_pretrained(tmp_path).eval()
    assert loaded.answer(batch, tokenizer) == model.answer(batch, tokenizer)
    torch.testing.assert_close(loaded(**batch).loss, model(**batch).loss)


def by_name(answer: Any) -> list[Any]:
    return list(answer.values()) if isinstance(answer, dict) else [answer]


def begin(paths: list[str]) -> None:
    sys.path[:] = paths


def test_all_can_be_sent_to_a_worker(own_kinds: Path, tokenizer: Any, label_of: Callable[..., str]) -> None:
    labels = [[label_of(OUTPUTS.choose(kind), label) for label in "79"] for kind in KINDS]
    outputs = [fitted(kind, tokenizer, *of) for kind, of in zip(KINDS, labels, strict=True)]
    asked = list(zip(outputs, labels, strict=True))
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), begin, (sys.path,)) as pool:
        there = [pool.submit(type(output).targets, output, of, tokenizer).result() for output, of in asked]
    for (output, of), targets in zip(asked, there, strict=True):
        assert torch.equal(targets, output.targets(of, tokenizer))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (
            "txt",
            "text, class, multi_label, number, ranking, embedding, several, image, speech, contents, or your own as",
        ),
        (
            {"kind": "several", "outputs": {"place": "embedding"}},
            "outputs.place is 'embedding', expected one of text, class, multi_label, number, ranking: others stand",
        ),
        (
            {"kind": "several", "outputs": {"note": "text"}},
            "outputs.note is 'text', expected another output beside it; alone: `output: text` and `align.label: note`",
        ),
        ({"kind": "several", "outputs": {"a/b": "class"}}, "outputs is 'a/b', expected the name of a column"),
        (
            {"kind": "class", "weights": "equal"},
            "output class: weights is 'equal': input should be 'none' or 'balanced'",
        ),
        (
            {"kind": "multi_label", "separator": " "},
            "expected a sign between labels, such as ; or [|]",
        ),
        ({"kind": "text", "beams": 3}, "output text has no option 'beams'; it has no options"),
    ],
)
def test_what_is_wrong_is_named(value: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        OUTPUTS.choose(value)
    assert OUTPUTS.choose("class") == Choice("class")


def settings_of(choice: Choice) -> Any:
    from training.settings import ModelSettings

    return ModelSettings(output=choice)


def fitted_on(value: Any, labels: list[str]) -> Any:
    choice = OUTPUTS.choose(value)
    return OUTPUTS.make(choice, OUTPUTS.make(choice, {}).fit(labels, None, settings_of(choice)))


def test_numbers_are_learned_in_deviations_and_answered_in_their_unit() -> None:
    output = fitted_on("number", ["100", "200", "300"])
    assert output.mean == 200 and output.deviation == pytest.approx(81.65, abs=0.01)
    targets = output.targets(["200", "300"], None)
    assert targets.tolist() == pytest.approx([0, 100 / output.deviation])
    assert output.loss(targets, targets).item() == 0
    assert fitted_on("number", ["5", "5"]).deviation == 1, "nothing is divided by nothing"
    assert output.constant([1.0, 2.0, 90.0]) == 2.0
    for label in ("seven", "nan", "1_0", "inf", "3,5"):
        with pytest.raises(ValueError, match="it is no number, as 12"):
            output.read(label)
    assert "cannot be read: it is no number" in output.doubt("seven", settings_of(Choice("number")))


def test_labels_are_parted_by_a_sign_or_are_a_list() -> None:
    output = fitted_on({"kind": "multi_label", "separator": "|"}, ["red|big", "red", "|"])
    assert output.labels == ["big", "red"]
    assert output.read(" red | big|red") == ["big", "red"] == output.read('["red", "big"]')
    assert output.read("|") == [] == output.read("[]")
    assert output.targets(["red", "|", "big|unheard"], None).tolist() == [[0, 1], [0, 0], [1, 0]]
    for label, words in (("[red]", "none that JSON knows"), ("[[1]]", "other things than names")):
        with pytest.raises(ValueError, match=words):
            output.read(label)
    with pytest.raises(ValueError, match="no training row has any"):
        fitted_on("multi_label", [";", "[]"])
    assert output.constant([["red"], ["red", "big"], ["red"]]) == ["red"]
    assert output.constant([[], [], ["red"]]) == [] and output.constant([]) is None


def test_an_order_is_as_likely_as_its_items_one_after_the_other() -> None:
    output = fitted_on("ranking", ["b > a > c", "c"])
    assert output.items == ["a", "b", "c"] and output.read('["c", "a"]') == ["c", "a"]
    targets = output.targets(["b > a > c", "c", "unheard > c"], None)
    assert targets.tolist() == [[1, 0, 2], [3, 3, 0], [3, 3, 0]]
    logits = torch.tensor([[0.0, 1.0, 2.0]] * 3)
    e = [math.exp(score) for score in (0, 1, 2)]
    whole = -math.log(e[1] / sum(e)) - math.log(e[0] / (e[0] + e[2]))
    assert output.loss(logits[:1], targets[:1]).item() == pytest.approx(whole / 3)
    assert output.loss(logits, targets).item() == pytest.approx((whole / 3 - 2 * math.log(e[2] / sum(e))) / 3)
    (answer, *_) = output.answers_of(logits)
    assert answer.prediction == ["c", "b", "a"] and answer.probability == pytest.approx(e[2] / sum(e))
    assert output.constant([["b", "a", "c"], ["c"], ["b", "c"]]) == ["b", "c", "a"]
    for label, words in ((">", "it names no item"), ("a > b > a", "it names 'a' twice")):
        with pytest.raises(ValueError, match=words):
            output.read(label)
    with pytest.raises(ValueError, match="training rows name 1 items, expected two"):
        fitted_on("ranking", ["a", "a"])


def test_balanced_weights_make_a_rare_class_count_as_much() -> None:
    plain, balanced = (fitted_on({"kind": "class", "weights": w}, ["a"] * 9 + ["b"]) for w in ("none", "balanced"))
    assert plain.weights is None and balanced.weights == pytest.approx([10 / 18, 5])
    targets = balanced.targets(["a"] * 9 + ["b"], None)
    logits = torch.zeros(10, 2, requires_grad=True)
    balanced.loss(logits, targets).backward()
    assert logits.grad is not None
    assert logits.grad[:9, 0].sum().item() == pytest.approx(logits.grad[9, 1].item())
    some = fitted_on({"kind": "multi_label", "weights": "balanced"}, ["a;b", "a", "a", ";"])
    assert some.weights == pytest.approx([1 / 3, 3])
    logits = torch.zeros(4, 2, requires_grad=True)
    some.loss(logits, some.targets(["a;b", "a", "a", ";"], None)).backward()
    assert logits.grad is not None and logits.grad.sum(0).tolist() == pytest.approx([0, 0], abs=1e-6)
