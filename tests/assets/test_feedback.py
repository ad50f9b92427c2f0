"""Feedback to pairs of answers: which answers give one, and that what was asked is found again."""

import hashlib
import json

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from assets import feedback
from assets.feedback import Pair, collect_pairs, pair_of
from assets.pipeline import open_lake
from orchestration.feedback import mark
from orchestration.project import load
from orchestration.serving.answer_log import answer_row, input_rows
from tests.orchestration.test_housekeeping import run_data_side
from training.schema import ANSWER_INPUTS, ANSWERS, MODALITIES

BEST = [{"answer": "yes", "probability": 0.6}, {"answer": "no", "probability": 0.3}]


@pytest.mark.parametrize(
    ("verdicts", "told", "prediction", "best", "gives"),
    [
        (["wrong"], ["no"], '"yes"', BEST, Pair("no", "yes")),
        (["wrong"], [], '"yes"', BEST, feedback.NOT_TOLD),
        (["right"], [], '"yes"', BEST, Pair("yes", "no")),
        (["right"], [], '"yes"', BEST[:1], feedback.NO_OTHER),
        (["right", "wrong"], ["no"], '"yes"', BEST, feedback.DISAGREE),
        (["wrong"], ["no", "maybe"], '"yes"', BEST, feedback.DISAGREE),
        (["wrong"], ["no"], None, BEST, feedback.WITHHELD),
        (["wrong"], ["7"], "3.5", [], feedback.WITHHELD),
    ],
)
def test_an_answer_gives_a_pair_or_a_reason(verdicts, told, prediction, best, gives):
    assert pair_of(verdicts, told, prediction, best) == gives


words = st.sampled_from(["yes", "no", "maybe"])


@given(st.lists(st.sampled_from(["right", "wrong"]), min_size=1, unique=True), st.lists(words, unique=True), words)
def test_of_a_pair_the_two_are_never_the_same(verdicts, told, said):
    pair = pair_of(verdicts, [one for one in told if one != said], json.dumps(said), BEST)
    assert isinstance(pair, str) or (pair.chosen != pair.rejected and said in pair)


def log(lake, given, kept=()):
    """An answer `yes` to what is given; returns its id."""
    row = answer_row(given, {"prediction": "yes", "best": BEST}, MODALITIES, ())
    lake.append("answers", [pa.Table.from_pylist([row], ANSWERS)])
    if kept:
        lake.append("answer_inputs", [pa.Table.from_pylist(input_rows(kept), ANSWER_INPUTS)])
    return row["answer_id"]


@pytest.mark.slow
def test_what_was_asked_is_found_in_the_lake_or_where_it_was_kept(tiny, make_png):
    project = load(tiny, ["answers={log: true}"])
    lake, _ = run_data_side(project)
    rows = lake.sql("SELECT sample_id, split, image_id, image_item FROM samples WHERE image_id IS NOT NULL").to_pylist()
    train, test = (next(row for row in rows if row["split"] == split) for split in ("train", "test"))
    uris = {row["item_id"]: row["uri"] for row in lake.sql("SELECT item_id, uri FROM manifest").to_pylist()}
    listed = ("train", train), ("test", test)
    files = {name: (tiny.parent / uris[row["image_item"]]).read_bytes() for name, row in listed}
    make_png(tiny.parent / "new.png", 77)
    new = ("image", (tiny.parent / "new.png").read_bytes()), ("text", b"Is it new?")
    ids = {
        "known": log(lake, [("image", files["train"])]),
        "kept": log(lake, new, kept=new),
        "lost": log(lake, [("image", b"nobody has kept it")]),
        "judged": log(lake, [("image", files["test"])]),
        "undecodable": log(lake, [("image", b"no picture")], kept=[("image", b"no picture")]),
        "unclear": log(lake, [("image", files["train"])]),
    }
    for name, answer in ids.items():
        mark(project, answer, "wrong", "no", by="ann")
        if name == "unclear":
            mark(project, answer, "right", by="bob")
    mark(project, ids["known"], "right", by="ann")  # she has thought again
    pairs = collect_pairs(lake, project)
    found = {row["answer_id"]: row for row in pairs.rows.to_pylist()}
    assert found.keys() == {ids["known"], ids["kept"]}
    assert (found[ids["known"]]["chosen"], found[ids["known"]]["rejected"]) == ("yes", "no")
    assert found[ids["known"]]["image_id"] == train["image_id"]
    assert (found[ids["kept"]]["chosen"], found[ids["kept"]]["rejected"]) == ("no", "yes")
    assert found[ids["kept"]]["text_id"] == hashlib.sha256(b"Is it new?").hexdigest()
    assert dict(pairs.left_out) == {feedback.DISAGREE: 1, feedback.NOT_THERE: 2, feedback.JUDGED: 1}
    before = {m: lake.version(f"{m}_features") for m in MODALITIES}
    assert collect_pairs(lake, project) == pairs
    assert {m: lake.version(f"{m}_features") for m in MODALITIES} == before, "nothing is made twice"


def test_feedback_is_about_answers_that_were_given(tiny):
    project = load(tiny, ["answers={log: true}"])
    lake = open_lake(project)
    answer = log(lake, [("text", b"Is it?")])
    with pytest.raises(ValueError, match="tiny has given no answer 'other'"):
        mark(project, "other", "right")
    with pytest.raises(ValueError, match="'yes' is the answer that was given: mark it right"):
        mark(project, answer, "wrong", " yes ")
    with pytest.raises(ValueError, match="this one is marked right"):
        mark(project, answer, "right", "no")
    with pytest.raises(ValueError, match="the verdict is 'maybe', expected right or wrong"):
        mark(project, answer, "maybe")
    assert lake.sql("SELECT * FROM feedback").num_rows == 0
