"""The log of answers: what a server writes, several at once, and while the lake does not answer."""

import base64
import hashlib
import json
import multiprocessing
import time
import uuid
from pathlib import Path

import pytest
import requests

from assets.lake import Lake
from orchestration.serving import answer_log
from orchestration.serving.answer_log import AnswerLog, new_id
from orchestration.serving.app import Limits
from orchestration.serving.feedback import FeedbackLog
from tests.orchestration.test_serving import Model, Server, wait_for
from training.schema import ANSWER_INPUTS, ANSWERS, FEEDBACK


def encoded(schema) -> str:
    return base64.b64encode(schema.serialize().to_pybytes()).decode()


SCHEMA = encoded(ANSWERS)
MEDIA = b"\x89PNG bytes"


class Placing(Model):
    """Also tells where it places rows."""

    def x_m(self, rows):
        return [[float(len(row)), 0.5] for row in rows]


def open_log(folder: Path, in_clear=(), plain=("text",)) -> AnswerLog:
    origin = {"model_version": "7", "dataset_fingerprint": "d"}
    return AnswerLog(str(folder / "answers"), {}, SCHEMA, ["text", "image"], ["image"], plain, in_clear, origin)


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    lake = Lake(str(tmp_path))
    lake.create("answers")
    lake.create("answers")  # and again, as several servers do
    assert lake.version("answers") == 0
    return lake


def answers(lake: Lake) -> list[dict]:
    return lake.sql("SELECT * FROM answers ORDER BY answer_id").to_pylist()


def log_many(folder: Path, name: str, count: int) -> None:
    answer_log._COMMITS = 3
    log = open_log(folder)
    for n in range(count):
        log.add([{"text": f"{name} {n}"}], [{"prediction": name, "probability": 0.5}])
        if n % 10 == 0:
            log._wake.set()  # a commit while the other one commits
            time.sleep(0.01)
    log.close()


def test_a_server_answers_with_ids_and_has_written_all_when_it_ends(lake, tmp_path):
    server = Server(Placing(), Limits(), log=open_log(tmp_path))
    server.thread.start()
    wait_for(lambda: server.uvicorn.started)
    image = base64.b64encode(MEDIA).decode()
    body = {"dataframe_records": [{"text": "a", "image": image}, {"text": "c", "image": None}]}
    told = server.post(json.dumps(body)).json()["predictions"]
    listed = json.dumps([image, f"data:image/png;base64,{image}"])
    told += server.post(json.dumps({"dataframe_records": [{"text": "b", "image": listed}]})).json()["predictions"]
    refused = server.post(json.dumps({"dataframe_records": [{"text": 1}]}))
    server.stop()
    assert refused.status_code == 400
    assert [row["prediction"] for row in told] == ["a", "c", "b"]
    rows = {row["answer_id"]: row for row in answers(lake)}
    assert list(rows) == sorted(row["answer_id"] for row in told) and "x_m" not in told[0]
    first, half, last = (rows[row["answer_id"]] for row in told)
    sha256 = hashlib.sha256(MEDIA).hexdigest()
    assert first["inputs"] == [
        {"name": "text", "sha256": hashlib.sha256(b"a").hexdigest(), "text": None},
        {"name": "image", "sha256": sha256, "text": None},
    ]
    assert (first["subset"], first["prediction"], first["x_m"]) == ("text+image", '"a"', [1.0, 0.5])
    assert (first["model_version"], first["dataset_fingerprint"]) == ("7", "d")
    assert (half["subset"], half["prediction"]) == ("text", '"c"')
    assert [one["sha256"] for one in last["inputs"]] == [hashlib.sha256(b"b").hexdigest(), sha256, sha256]


@pytest.mark.slow
def test_two_processes_log_at_once_and_none_is_lost(lake, tmp_path):
    context = multiprocessing.get_context("spawn")
    others = [context.Process(target=log_many, args=(tmp_path, name, 60)) for name in ("a", "b")]
    for process in others:
        process.start()
    for process in others:
        process.join(60)
        assert process.exitcode == 0
    rows = answers(lake)
    assert len({row["answer_id"] for row in rows}) == len(rows) == 120
    assert lake.version("answers") > 4, "they were not two commits"
    assert len(lake.open("answers").file_uris()) < lake.version("answers"), "small files became few"


def test_what_cannot_be_written_waits_for_the_lake(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(answer_log, "_SECONDS", 0.05)
    (tmp_path / "lake").write_text("no folder")
    log = open_log(tmp_path / "lake", in_clear=["text"])
    log.add([{"text": "a"}], [{"prediction": None, "abstained": True}])
    said = ""
    while "1 answers cannot be logged" not in said:
        said += capsys.readouterr().err
        time.sleep(0.02)
    (tmp_path / "lake").unlink()
    lake = Lake(str(tmp_path / "lake"))
    lake.create("answers")
    log.close()
    (row,) = answers(lake)
    assert (row["prediction"], row["inputs"][0]["text"]) == (None, "a")


def test_ids_are_uuids_that_sort_by_time():
    ids = []
    for _ in range(20):
        ids.append(new_id())
        time.sleep(0.002)
    assert ids == sorted(ids)
    assert {(uuid.UUID(one).version, uuid.UUID(one).variant) for one in ids} == {(7, uuid.RFC_4122)}


def test_half_a_character_is_written_as_well_as_it_can_be(lake, tmp_path):
    log = open_log(tmp_path, in_clear=["text"])
    log.add([{"text": "half \ud83d"}], [{"prediction": "half \ud83d"}])
    log.close()
    (row,) = answers(lake)
    assert (row["prediction"], row["inputs"][0]["text"]) == ('"half \ufffd\ufffd\ufffd"', "half \ufffd\ufffd\ufffd")


def test_each_of_several_is_logged_by_itself_however_it_is_given(lake, tmp_path):
    log = open_log(tmp_path, in_clear=["text"], plain=["note"])
    vector, image = "[0.5, 1]", base64.b64encode(MEDIA).decode()
    ways = [{"text": ["a", None, "b; c"]}, {"text": {"asked": "a", "said": "b; c"}}]
    ways += [{name: json.dumps(value) for name, value in way.items()} for way in ways]
    asked = [*(way | {"note": '["a"]'} for way in ways), {"text": vector, "image": {"front": image}}]
    ids = log.add(asked, [{"prediction": "yes"}] * len(asked))
    log.close()
    by_id = {row["answer_id"]: row for row in answers(lake)}
    *rows, last = (by_id[one] for one in ids)
    said = [("text", "a"), ("text", "b; c"), ("note", '["a"]')]
    hashes = [(name, hashlib.sha256(text.encode()).hexdigest()) for name, text in said]
    assert [[(one["name"], one["sha256"]) for one in row["inputs"]] for row in rows] == [hashes] * 4
    assert {row["subset"] for row in rows} == {"text"} and last["subset"] == "text+image"
    assert last["inputs"][0]["text"] == vector and last["inputs"][1]["sha256"] == hashlib.sha256(MEDIA).hexdigest()


def test_what_is_asked_is_kept_once_where_that_is_said(lake, tmp_path):
    lake.create("answer_inputs")
    inputs = (str(tmp_path / "answer_inputs"), encoded(ANSWER_INPUTS))
    log = AnswerLog(str(tmp_path / "answers"), {}, SCHEMA, ["text", "image"], ["image"], ["text"], (), {}, inputs)
    image = base64.b64encode(MEDIA).decode()
    log.add([{"text": "a", "image": image}, {"text": "b", "image": image}], [{"prediction": "yes"}] * 2)
    log.close()
    rows = lake.sql("SELECT name, data, sha256 FROM answer_inputs ORDER BY name, data").to_pylist()
    assert [(row["name"], row["data"]) for row in rows] == [("image", MEDIA), ("text", b"a"), ("text", b"b")]
    assert all(row["sha256"] == hashlib.sha256(row["data"]).hexdigest() for row in rows)


def test_a_server_takes_feedback_on_its_answers_and_no_others(lake, tmp_path, monkeypatch):
    monkeypatch.setattr(answer_log, "_SECONDS", 0.5)
    lake.create("feedback")
    places = str(tmp_path / "feedback"), str(tmp_path / "answers")
    marks = FeedbackLog(*places, encoded(FEEDBACK), {}, "shop")
    server = Server(Model(), Limits(), log=open_log(tmp_path), feedback=marks)
    server.thread.start()
    wait_for(lambda: server.uvicorn.started)
    url = f"http://127.0.0.1:{server.port}/feedback"
    (said,) = server.ask("yes").json()["predictions"]

    def tell(**more):
        return requests.post(url, json={"answer_id": said["answer_id"], "verdict": "wrong", **more}, timeout=20)

    told = tell(answer="no", by="ann").json()
    assert (told["verdict"], told["answer"], told["by"]) == ("wrong", "no", "ann"), "though it is not written yet"
    assert "is the one that was given" in tell(answer="yes").json()["message"]
    wait_for(lambda: len(answers(lake)) == 1)
    assert tell(verdict="right").status_code == 200
    assert "expected right or wrong" in tell(verdict="so-so").json()["message"]
    assert "shop has given no answer 'another'" in tell(answer_id="another").json()["message"]
    soon = tell(answer_id=new_id())
    assert (soon.status_code, soon.headers["retry-after"]) == (503, "1"), "another worker may have given it"
    plain = requests.post(url, data=json.dumps(told), headers={"Content-Type": "text/plain"}, timeout=20)
    assert plain.status_code == 415, "what any page may make a browser send"
    for body in ("{", "[]", '{"answer_id": 1, "verdict": "right"}', '{"verdict": "right"}'):
        assert (
            requests.post(url, data=body, headers={"Content-Type": "application/json"}, timeout=20).status_code == 400
        )
    server.stop()
    rows = lake.sql("SELECT * FROM feedback ORDER BY time").to_pylist()
    assert [(row["answer_id"], row["verdict"], row["answer"], row["by"]) for row in rows] == [
        (said["answer_id"], "wrong", "no", "ann"),
        (said["answer_id"], "right", None, None),
    ]


def test_a_server_that_logs_nothing_says_so(tmp_path):
    server = Server(Model(), Limits())
    server.thread.start()
    wait_for(lambda: server.uvicorn.started)
    body = {"answer_id": "a", "verdict": "right"}
    told = requests.post(f"http://127.0.0.1:{server.port}/feedback", json=body, timeout=20)
    server.stop()
    assert told.status_code == 404 and "answers are not logged here" in told.json()["message"]
