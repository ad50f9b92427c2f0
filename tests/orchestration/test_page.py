"""The page of the server of answers in a real browser, with a microphone and a camera; the model answers by script.

`tests/test_end_to_end.py` asks a trained model by it.
"""

import base64
import contextlib
import io
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import soundfile
import uvicorn
from mlflow.exceptions import MlflowException
from PIL import Image
from playwright.sync_api import expect

from orchestration.serving.app import Limits, make_app
from training.records import Answer

INPUTS = {
    "text": {"type": "text/plain", "suffixes": [".txt"]},
    "image": {"type": "image/*", "suffixes": [".png"]},
    "speech": {"type": "audio/*", "suffixes": [".wav", ".opus"]},
}
LIMITS = {"max_bytes": 400_000, "max_seconds": 120.0, "max_characters": 500}
PARTS = {
    "drink": Answer("tea", 0.875, (("tea", 0.875), ("mate", 0.1))),
    "price": Answer(2.5),
    "tags": Answer(["hot", "green"], 0.5),
    "size": Answer("large", 0.1),
}
SEVERAL = Answer({name: part.prediction for name, part in PARTS.items()}, 0.4, (), PARTS)


def png(size: int = 64) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (size, size, 3), np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def data_url(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


class Model:
    """Answers with the names of what it is given, or with what a text asks for; keeps what it was given."""

    max_rows = 20

    def __init__(self, views: Sequence[str] = ()) -> None:
        self.requests: list[list[dict[str, Any]]] = []
        self.inputs = {name: {**about, "views": list(views)} for name, about in INPUTS.items()}

    def about(self) -> dict[str, Any]:
        return {
            "version": "7",
            "dataset_fingerprint": "0123456789abcdef",
            "inputs": self.inputs,
            "columns": ["answer"],
            "limits": LIMITS,
        }

    def read(self, record: dict[str, Any], number: int) -> dict[str, Any]:
        if record.get("text") == "refuse":
            raise MlflowException.invalid_parameter_value(f"row {number}, column text: is not to my liking")
        return record

    def answer(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        self.requests.append(rows)
        return [self.answer_one(row) for row in rows]

    def answer_one(self, row: dict[str, Any]) -> dict[str, Any]:
        probability = len(row) / 4
        answer: dict[str, Any] = {"prediction": "+".join(sorted(row)), "probability": probability, "abstained": False}
        answer["best"] = [{"answer": answer["prediction"], "probability": probability}]
        answer["best"] += [{"answer": "another", "probability": 0.1}]
        answer |= {"model_version": "7", "dataset_fingerprint": "0123456789abcdef"}
        scripts = {
            "markup": {"prediction": "<img src=x onerror=alert(1)>"},
            "unsure": {"prediction": None, "abstained": True},
            "number": {"prediction": 3.25, "probability": None, "best": []},
            "several": SEVERAL.to_json(abstain_below=0.2),
            "picture": {"prediction": base64.b64encode(png()).decode()},
            "logged": {"answer_id": "019ac3e2"},
            "sound": {"prediction": data_url(b"RIFF", "audio/wav")},
        }
        return answer | scripts.get(str(row.get("text", "")), {})


@pytest.fixture(scope="module")
def served(free_ports: Callable[[int], list[int]]) -> Iterator[tuple[str, Model]]:
    """The page's URL, and the model behind it."""
    with serving(Model(), *free_ports(1)) as url_and_model:
        yield url_and_model


@contextlib.contextmanager
def serving(model: Model, port: int) -> Iterator[tuple[str, Model]]:
    app = make_app(model, (*INPUTS, "answer"), Limits(body_bytes=1_000_000), "0.0.0.0", "shop")
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until = time.monotonic() + 20
    while not server.started:
        assert time.monotonic() < until
        time.sleep(0.02)
    yield f"http://127.0.0.1:{port}/", model
    server.should_exit = True
    thread.join(20)


def ask(page: Any, text: str | None = None) -> str:
    """What the page says in the end."""
    if text is not None:
        page.fill("textarea", text)
    page.click("#ask")
    page.wait_for_selector("#ask:enabled")
    return page.inner_text("main")


def drop(page: Any, where: str, *files: tuple[str, str, bytes]) -> None:
    given = [[name, kind, base64.b64encode(data).decode()] for name, kind, data in files]
    page.eval_on_selector(
        where,
        """(node, given) => {
            const dataTransfer = new DataTransfer();
            for (const [name, type, data] of given)
                dataTransfer.items.add(new File([Uint8Array.from(atob(data), (c) => c.charCodeAt(0))], name, { type }));
            for (const event of ["dragover", "drop"])
                node.dispatchEvent(new DragEvent(event, { dataTransfer, bubbles: true, cancelable: true }));
        }""",
        given,
    )


def decoded(url: str) -> bytes:
    return base64.b64decode(url.partition(",")[2])


def test_nothing_but_the_page_can_do_anything_in_it(served: tuple[str, Model]) -> None:
    url, _ = served
    for name in (
        "",
        "about",
        "page.css",
        "page.js",
        "answer.js",
        "inputs.js",
        "devices.js",
        "recorder.js",
        "streaming.js",
        "words.js",
    ):
        found = requests.get(url + name, timeout=9)
        assert found.status_code == 200 and found.headers["X-Frame-Options"] == "DENY", name
        policy = found.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
        assert found.headers["Cache-Control"] == "no-cache" and found.headers["X-Content-Type-Options"] == "nosniff"
    assert requests.get(url + "page.py", timeout=9).status_code == 404


def test_it_speaks_looks_and_asks(served: tuple[str, Model], browse: Any) -> None:
    """Text, camera and microphone; one request holds every subset of them."""
    url, model = served
    page = browse(url, viewport={"width": 1200, "height": 900})
    page.wait_for_selector(".card")
    assert page.inner_text("h1") == "shop" and page.inner_text("#languages") == "English中文"
    assert page.inner_text("#origin") == "Version 7, trained on dataset 0123456789abcdef"
    assert "Give at least one input first." in ask(page)
    assert ask(page, "hello").endswith("Version 7, trained on dataset 0123456789abcdef")
    assert model.requests[-1] == [{"text": "hello"}] and "contributed" not in page.inner_text("main")
    page.get_by_role("button", name="Camera").click()
    page.get_by_role("button", name="Take the picture").click()
    page.wait_for_selector("[data-input=image] img")
    page.get_by_role("button", name="Record").click()
    page.locator("[data-input=speech] .preview", has_text=re.compile(r"[1-9]\.\d s")).wait_for()
    expect(page.locator("[data-input=speech] [role=status]")).to_have_text("So far: image+speech+text (75%)")
    early = model.requests[-1]
    assert len(early) == 1 and early[0]["text"] == "hello", "the page streams, beside what else is given"
    page.get_by_role("button", name="Stop").click()
    page.wait_for_selector("audio")
    said = ask(page)
    rows = model.requests[-1]
    assert [sorted(row) for row in rows[:2]] == [["image", "speech", "text"], ["image", "text"]] and len(rows) == 7
    assert "image+speech+text" in said and "Probability that it is right: 75%" in said
    assert page.locator("tr.same").count() == 1 and page.locator("tbody tr").count() == 2 + 7
    picture = np.asarray(Image.open(io.BytesIO(decoded(rows[0]["image"]))).convert("RGB")).reshape(-1, 3)
    assert picture.shape[0] >= 640 * 360 and (picture.argmax(1) == 1).mean() > 0.9  # green
    sound, rate = soundfile.read(io.BytesIO(decoded(rows[0]["speech"])))
    assert sound.ndim == 1 and 1 < len(sound) / rate < 9
    spectrum = np.abs(np.fft.rfft(sound * np.hanning(len(sound))))
    assert abs(spectrum.argmax() * rate / len(sound) - 440) < 5
    page.get_by_label("answer", exact=True).fill(" 63 ")  # a column, which stays what it is called in every language
    ask(page)
    assert [row["answer"] for row in model.requests[-1]] == ["63"] * 7, "each subset is asked with it"
    assert not browse.errors and {re.match(r"(blob:|data:)|(http://[^/]+/)", one)[0] for one in browse.asked} <= {
        url, "blob:", "data:"
    }  # fmt: skip


def test_files_are_dropped_and_refused_in_words(served: tuple[str, Model], browse: Any, tmp_path: Path) -> None:
    url, model = served
    page = browse(url)
    page.wait_for_selector(".card")
    drop(
        page, "body", ("photo.png", "image/png", png()), ("voice.opus", "", b"OggS"), ("note.txt", "text/plain", b"hi")
    )
    expect(page.locator("textarea")).to_have_value("hi")
    assert "photo.png" in page.inner_text("main") and "voice.opus" in page.inner_text("main")
    ask(page)
    given = model.requests[-1][0]
    assert given["text"] == "hi" and decoded(given["image"]) == png() and decoded(given["speech"]) == b"OggS"
    drop(page, "body", ("table.xlsx", "application/vnd.ms-excel", b"PK"))
    assert "table.xlsx fits none of the inputs." in page.inner_text("main")
    drop(page, "[data-input=image]", ("scan", "", b"BM"))  # whatever it is called: where it was dropped is plain
    assert "scan" in page.inner_text("[data-input=image]")
    asked = len(model.requests)
    large = tmp_path / "large.png"
    large.write_bytes(b"x" * 400_001)
    page.set_input_files("#input-image", large)
    assert "large.png has 390.6 kB; the model takes 390.6 kB at most." in page.inner_text("main")
    drop(page, "body", ("empty.wav", "audio/wav", b""))
    assert "empty.wav is empty." in page.inner_text("main")
    assert len(model.requests) == asked, "told before anything is sent"
    assert "The model cannot read this.\ntext: is not to my liking" in ask(page, "refuse")
    # What is too much for one request goes in several.
    page.set_input_files("#input-image", {"name": "a.png", "mimeType": "image/png", "buffer": b"x" * 390_000})
    assert page.locator("tbody tr").count() == 0
    ask(page, "hello")
    assert [len(rows) for rows in model.requests[asked:]] == [1, 2, 2, 2] and page.locator("tr").count() > 8
    assert not browse.errors


@pytest.mark.parametrize("width", [360, pytest.param(1200, marks=pytest.mark.slow)])
def test_answers_of_every_kind_fit(served: tuple[str, Model], browse: Any, width: int) -> None:
    """Markup is text, several answers are a table, media are shown and played; in Chinese, too."""
    url, _ = served
    page = browse(url, locale="zh-CN", viewport={"width": width, "height": 740})
    page.wait_for_selector(".card")
    drop(page, "body", ("photo.png", "image/png", png()))

    def shown(text: str) -> str:
        said = ask(page, text)
        assert page.evaluate("document.documentElement.scrollWidth") == width, text
        return said

    assert "<img src=x onerror=alert(1)>" in shown("markup")
    assert "没有答案" in shown("unsure") and page.locator("tr.same").count() == 0
    assert "3.25" in shown("number") and "概率" not in shown("number").partition("各项输入")[0]
    said = shown("several")
    assert "drink\ttea\t\n87.5%" in said and "drink：最可能的答案" in said
    assert "price\t2.5" in said and "tags\thot, green" in said and "size\t未作答" in said and "large" not in said
    shown("picture")
    assert page.eval_on_selector(".said img", "(node) => node.naturalWidth") == 64
    shown("sound")
    assert page.locator(".said audio").count() == 1
    assert "模型无法读取这些输入。" in shown("refuse")
    page.click("text=English")
    assert "The model cannot read this." in page.inner_text("main") and page.get_attribute("html", "lang") == "en"
    assert not browse.errors


def test_an_answer_that_is_logged_can_be_marked(served: tuple[str, Model], browse: Any) -> None:
    page = browse(served[0])
    page.wait_for_selector(".card")
    ask(page, "logged")
    told: list[Any] = []

    def note(route: Any) -> None:
        told.append(route.request.post_data_json)
        route.fulfill(status=200, body="{}", content_type="application/json")

    page.route("**/feedback", note)
    page.get_by_role("button", name="Wrong").click()
    page.get_by_label("The right answer, if you know it").fill("tea")
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_role("status")).to_have_text("Noted, thank you.")
    page.get_by_role("button", name="中文").click()
    page.get_by_role("button", name="正确", exact=True).click()
    expect(page.get_by_role("status")).to_have_text("已记录，谢谢。")
    marks = [("wrong", None), ("wrong", "tea"), ("right", None)]
    assert told == [{"answer_id": "019ac3e2", "verdict": verdict, "answer": answer} for verdict, answer in marks]
    page.unroute("**/feedback")
    page.get_by_role("button", name="正确", exact=True).click()
    expect(page.get_by_role("status")).to_have_text("未能记录。")
    assert not browse.errors


def test_of_views_it_says_which_one_is_given(free_ports: Callable[[int], list[int]], browse: Any) -> None:
    with serving(Model(["left", "right"]), *free_ports(1)) as (url, model):
        page = browse(url)
        page.wait_for_selector(".card")
        page.select_option("[data-input=image] select", "right")
        page.set_input_files("#input-image", {"name": "a.png", "mimeType": "image/png", "buffer": png()})
        ask(page, "hello")
        assert sorted(model.requests[-1][0]) == ["image", "text"]
        assert model.requests[-1][0]["text"] == {"left": "hello"}
        assert {view: decoded(url) for view, url in model.requests[-1][0]["image"].items()} == {"right": png()}
    assert not browse.errors


def test_where_microphone_and_camera_do_not_work_it_says_so(served: tuple[str, Model], browse: Any) -> None:
    url, model = served
    page = browse(url.replace("127.0.0.1", "shop.test"))  # neither localhost nor https
    page.wait_for_selector(".card")
    assert "work on localhost and over https only" in page.inner_text("[data-input=speech]")
    assert all(page.get_by_role("button", name=name).is_disabled() for name in ("Record", "Camera"))
    ask(page, "hello")
    assert model.requests[-1] == [{"text": "hello"}]
