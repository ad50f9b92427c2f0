"""The logged model with its own code: in a fresh process, behind the server, and as the gate scores it."""

import base64
import contextlib
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import PIL.Image
import psutil
import pyarrow as pa
import pytest
import requests
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from mlflow.exceptions import MlflowException

from orchestration.servers import serve_command
from training.features import FeatureSettings
from training.model_registry import example_row
from training.processor import Processor
from training.score import answer_rows, bundle_of, score
from training.serving import OUTPUTS, REQUEST_LIMITS, ServedModel, media_bytes, read_columns, read_inputs, stricter
from training.settings import MediaLimits

MODALITIES = ("text", "image", "speech")


def png(size: int = 20) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray((np.mgrid[:size, :size].sum(0) * 3).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def wav(seconds: float = 0.3) -> bytes:
    buffer = io.BytesIO()
    time_s = np.arange(round(8000 * seconds)) / 8000
    soundfile.write(buffer, 0.5 * np.sin(2 * np.pi * 300 * time_s), 8000, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def text64(data: bytes) -> str:
    return base64.b64encode(data).decode()


IMAGE, SPEECH, QUESTION = text64(png()), text64(wav()), "What do you see?"


@pytest.fixture(scope="module")
def served(logged: Path) -> ServedModel:
    """The served model in this process, which runs the same code."""
    model = ServedModel()
    limits = {
        "dataset_fingerprint": "f00d",
        "max_bytes": 10_000,
        "max_seconds": 0.5,
        "max_pixels": 10_000,
        "max_rows": 8,
    }
    model.load_context(SimpleNamespace(artifacts={"bundle": str(bundle_of(logged))}, model_config=limits))
    return model


def ask(model: ServedModel, *rows: dict[str, Any]) -> pd.DataFrame:
    return model.predict(None, pd.DataFrame(list(rows)))


def test_any_subset_of_the_inputs_mixed_in_one_batch(served: ServedModel) -> None:
    full = {"text": QUESTION, "image": IMAGE, "speech": SPEECH}
    subsets = [{m: full[m] for n, m in enumerate(MODALITIES) if chosen >> n & 1} for chosen in range(1, 8)]
    answers = ask(served, *subsets)
    assert list(answers.columns) == list(OUTPUTS)
    assert len(answers) == 7 and all(isinstance(answer, str) for answer in answers["prediction"])
    assert set(answers["dataset_fingerprint"]) == {"f00d"} and set(answers["model_version"]) == {"1"}
    # What other rows hold does not change an answer.
    alone = [ask(served, row)["prediction"][0] for row in subsets]
    assert alone == answers["prediction"].tolist()


def test_null_nan_and_empty_mean_not_given(served: ServedModel) -> None:
    rows = [{"text": QUESTION, "image": nothing, "speech": nothing} for nothing in (None, float("nan"), "")]
    assert ask(served, *rows)["prediction"].nunique() == 1
    assert ask(served, {"text": QUESTION})["prediction"][0] == ask(served, rows[0])["prediction"][0]
    assert len(served.predict(None, pd.DataFrame({"text": []}))) == 0


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"text": None}, "row 1 is empty: give at least one of text, image, speech"),
        ({"image": "not base64!"}, "row 1, column image: is not base64"),
        ({"image": text64(b"hello")}, "row 1, column image: .*(JPEG|not a format)"),
        ({"image": text64(png()[:60])}, "row 1, column image: "),
        ({"text": QUESTION, "speech": text64(wav()[:30])}, "row 1, column speech: "),
        ({"speech": IMAGE}, "row 1, column speech: PNG cannot be read as audio"),
        ({"image": 5}, "row 1, column image: is float, expected a string"),
        ({"image": text64(png(200))}, r"row 1, column image: 200x200 pixels .*max_pixels"),
        ({"speech": text64(wav(0.6))}, r"row 1, column speech: 0.6 s .*max_seconds"),
        ({"speech": "A" * 40_000}, r"row 1, column speech: about 30000 bytes .*10000 \(max_bytes\)"),
        ({"image": "data:image/png," + IMAGE}, "row 1, column image: a data: URL must be base64"),
        ({"text": "x" * 30_000}, "row 1, column text: 30000 characters"),
    ],
)
def test_what_cannot_be_understood_names_row_and_column(served: ServedModel, row: dict[str, Any], words: str) -> None:
    with pytest.raises(MlflowException, match=words) as caught:
        ask(served, {"text": QUESTION}, row)
    assert caught.value.error_code == "INVALID_PARAMETER_VALUE" and caught.value.get_http_status_code() == 400


def test_too_many_rows_are_refused(served: ServedModel) -> None:
    with pytest.raises(MlflowException, match=r"9 rows are over the limit of 8 \(max_rows\)"):
        ask(served, *[{"text": QUESTION}] * 9)


def test_a_modality_that_the_model_lacks_is_refused() -> None:
    with pytest.raises(MlflowException, match="row 3, column speech: this model takes text, image only"):
        read_inputs({"speech": SPEECH}, 3, ("text", "image"), Processor(FeatureSettings(), MediaLimits()))


def test_several_of_a_modality_are_a_list_or_its_json() -> None:
    media, vectors = Processor(FeatureSettings(), MediaLimits()), {"kind": "vector", "width": 1}
    for several in ([IMAGE, IMAGE], json.dumps([IMAGE, IMAGE])):
        assert read_inputs({"image": several}, 0, MODALITIES, media) == {"image": [png(), png()]}
    assert read_inputs({"image": IMAGE, "text": '["a"]'}, 0, MODALITIES, media) == {"image": [png()], "text": ['["a"]']}
    for views in ({"a": IMAGE, "b": None}, json.dumps({"a": IMAGE})):
        assert read_inputs({"image": views}, 0, MODALITIES, media) == {"image": {"a": png()}}
    for texts in (["a", "b; c"], '["a", "b; c"]'):
        assert read_inputs({"text": texts}, 0, MODALITIES, media, {"text": 3}) == {"text": ["a", "b; c"]}
    for wrong in ([IMAGE, 3], {"a": 3}):
        with pytest.raises(MlflowException, match=r"row 0, column image: is (list|dict), expected a string"):
            read_inputs({"image": wrong}, 0, MODALITIES, media)
    processor = Processor(FeatureSettings(image=vectors), MediaLimits())
    for several, expected in (("[[0.5]]", ["[[0.5]]"]), ('["[0.5]", "[1]"]', ["[0.5]", "[1]"])):
        assert read_inputs({"image": several}, 0, MODALITIES, processor) == {"image": expected}


def test_the_example_of_a_model_with_views_says_of_which_view_it_is() -> None:
    features, several = FeatureSettings(), {"image": ["left", "right"], "text": ("asked", "said"), "speech": 2}
    inputs = read_inputs(example_row(features, several), 0, MODALITIES, Processor(features, MediaLimits()), several)
    assert (list(inputs["image"]), list(inputs["text"]), len(inputs["speech"])) == (["left"], ["asked"], 1)
    assert inputs["image"]["left"] == features.modality("image").example()


def test_other_columns_are_strings_within_the_limit() -> None:
    given = {"age": "63", "sex": None, "ward": float("nan"), "text": "a"}
    assert read_columns(given, 0, ("age", "sex", "ward", "name"), 9) == {"age": "63", "sex": "", "ward": "", "name": ""}
    for value, words in ((63, "row 2, column age: is int, expected a string"), ("6" * 10, "age: has 10 characters")):
        with pytest.raises(MlflowException, match=words):
            read_columns({"age": value}, 2, ("age",), 9)


def test_request_limits_never_loosen_those_of_the_processor() -> None:
    limits = stricter(MediaLimits(max_bytes=1000, max_seconds=500.0), REQUEST_LIMITS)
    assert limits.max_bytes == 1000 and limits.max_seconds == REQUEST_LIMITS["max_seconds"]


@given(st.binary(max_size=200), st.integers(1, 80))
def test_base64_in_all_its_spellings_is_read(data: bytes, width: int) -> None:
    plain = text64(data)
    lines = "\r\n".join(plain[n : n + width] for n in range(0, len(plain), width))
    for spelt in (plain, plain.rstrip("="), base64.urlsafe_b64encode(data).decode(), lines, f"data:a/b;base64,{plain}"):
        assert media_bytes(spelt, 1000) == data


@given(st.text(max_size=50))
def test_any_other_text_is_read_or_refused(value: str) -> None:
    try:
        assert isinstance(media_bytes(value, 1000), bytes)
    except ValueError as error:
        assert "base64" in str(error)


def raw_rows() -> pa.Table:
    return pa.table(
        {
            "sample_id": ["all", "text", "image", "broken", "nothing"],
            "label": ["seven", "nine", None, "seven", "seven"],
            "text": [QUESTION, QUESTION, None, None, None],
            "image": pa.array([png(), None, png(), b"broken", None], pa.large_binary()),
            "speech": pa.array([wav(), None, None, None, None], pa.large_binary()),
        }
    )


def test_scoring_runs_the_logged_code_and_agrees_with_serving(
    logged: Path, served: ServedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "older"
    shutil.copytree(logged, model)
    code = model / "code" / "training" / "score.py"
    plain, marked = (
        'results = [{"sample_id": row.get("sample_id")',
        'results = [{"sample_id": "own " + row["sample_id"]',
    )
    assert plain in code.read_text()
    code.write_text(code.read_text().replace(plain, marked))
    foreign = tmp_path / "elsewhere" / "training"
    foreign.mkdir(parents=True)
    (foreign / "__init__.py").write_text("raise RuntimeError('the wrong training')")
    monkeypatch.chdir(foreign.parent)

    answers = answer_rows(model, raw_rows().to_reader()).to_pylist()
    full = {"text": QUESTION, "image": IMAGE, "speech": SPEECH}
    expected = ask(served, full, {"text": QUESTION}, {"image": IMAGE})["prediction"].tolist()
    assert [row["prediction"] for row in answers] == [*expected, None, None]
    assert [row["sample_id"] for row in answers] == ["own all", "own text", "own image", "own broken", "own nothing"]
    assert [row["error"] is None for row in answers] == [True, True, True, False, False]
    assert "nothing that this model reads" in str(answers[-1]["error"])
    assert not list(model.rglob("__pycache__"))


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{tmp_path} holds no model"):
        score(tmp_path, tmp_path / "rows.parquet", tmp_path / "answers.parquet")


def test_pyfunc_loads_without_pickle_and_imports_nothing_of_the_data_side(logged: Path) -> None:
    script = (
        "import json, sys, mlflow, pandas\n"
        f"model = mlflow.pyfunc.load_model({str(logged)!r})\n"
        f"rows = pandas.DataFrame([{{'text': {QUESTION!r}, 'speech': None}}, {{'image': {IMAGE!r}, 'speech': None}}])\n"
        "found = model.predict(rows).to_dict('records')\n"
        "print(json.dumps([found, sys.modules['training'].__file__, sorted(m.partition('.')[0] for m in sys.modules)]))"
    )
    env = os.environ | {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    env.pop("PYTHONPATH", None)
    command = [sys.executable, "-P", "-B", "-c", script]
    done = subprocess.run(command, env=env, cwd=logged, capture_output=True, text=True, check=True)
    answers, code, modules = json.loads(done.stdout.splitlines()[-1])
    assert [set(row) for row in answers] == [set(OUTPUTS)] * 2
    assert answers[0]["model_version"] == "1" and answers[0]["dataset_fingerprint"] == "0123456789abcdef"
    assert Path(code).is_relative_to(logged)
    assert not {"dagster", "duckdb", "deltalake", "assets", "matplotlib"} & set(modules)


@contextlib.contextmanager
def serving(model: Path, *options: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The server of a logged model: its URL and process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    argv, env = serve_command(model, "127.0.0.1", port, *options)
    process = subprocess.Popen(argv, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + 120
        while not _answers(url):
            assert process.poll() is None and time.monotonic() < until, "the server did not start"
            time.sleep(0.2)
        yield f"{url}/invocations", process
    finally:
        process.terminate()
        process.wait(30)


def _answers(url: str) -> bool:
    try:
        return requests.get(f"{url}/ping", timeout=60).ok
    except requests.ConnectionError:
        return False


@pytest.fixture(scope="module")
def server(logged: Path) -> Iterator[str]:
    with serving(logged) as (url, _):
        yield url


@pytest.mark.slow
def test_the_scoring_server_answers_mixed_rows_with_nulls(server: str) -> None:
    records = [
        {"text": QUESTION, "image": IMAGE, "speech": SPEECH},
        {"text": QUESTION, "image": None, "speech": None},
        {"text": None, "image": "data:image/png;base64," + IMAGE, "speech": None},
        {"text": None, "image": None, "speech": SPEECH},
    ]
    found = requests.post(server, json={"dataframe_records": records}, timeout=60)
    assert found.status_code == 200, found.text
    answers = found.json()["predictions"]
    assert len(answers) == 4 and {answer["model_version"] for answer in answers} == {"1"}
    sparse = [{k: v for k, v in record.items() if v is not None} for record in records]
    assert requests.post(server, json={"dataframe_records": sparse}, timeout=60).json()["predictions"] == answers
    split = {"columns": list(MODALITIES), "data": [[record[m] for m in MODALITIES] for record in records]}
    assert requests.post(server, json={"dataframe_split": split}, timeout=60).json()["predictions"] == answers
    only_text = requests.post(server, json={"dataframe_records": [{"text": QUESTION}]}, timeout=60)
    assert only_text.json()["predictions"] == [answers[1]]
    table = f"text,image\n{QUESTION},\n,{IMAGE}\n"
    csv = requests.post(server, data=table, headers={"Content-Type": "text/csv"}, timeout=60)
    assert csv.json()["predictions"] == [answers[1], answers[2]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"dataframe_records": [{"text": QUESTION}, {"image": "???"}]}, "row 1, column image: is not base64"),
        ({"dataframe_records": [{"text": QUESTION}, {"text": None}]}, "row 1 is empty"),
        ({"dataframe_records": [{"smell": "x"}]}, "no column is one of text, image, speech"),
        ({"dataframe_records": [{"text": 5}]}, "string"),
        ({"rows": []}, "dataframe_records"),
        ({"dataframe_records": [{"text": QUESTION}] * 1000}, "max_rows"),
    ],
)
def test_the_scoring_server_refuses_with_words(server: str, body: dict[str, Any], words: str) -> None:
    found = requests.post(server, json=body, timeout=60)
    assert found.status_code == 400 and words in found.json()["message"]


@pytest.mark.slow
def test_many_clients_at_once_are_answered_as_one_by_one(server: str) -> None:
    full = {"text": QUESTION, "image": IMAGE, "speech": SPEECH}
    rows = [{m: full[m] for n, m in enumerate(MODALITIES) if chosen >> n & 1} for chosen in range(1, 8)] * 5

    def ask(row: dict[str, str]) -> Any:
        return requests.post(server, json={"dataframe_records": [row]}, timeout=60).json()["predictions"][0]

    alone = [ask(row) for row in rows[:7]] * 5
    with ThreadPoolExecutor(32) as clients:
        assert list(clients.map(ask, rows)) == alone
    for _ in range(3):  # the model is read by threads
        table = requests.post(server, json={"dataframe_records": rows}, timeout=60)
        assert table.json()["predictions"] == alone


@pytest.mark.slow
def test_workers_end_with_the_server_however_it_ends(logged: Path) -> None:
    with serving(logged, "--workers", "2") as (url, process):
        workers = [p for p in psutil.Process(process.pid).children() if "spawn_main" in " ".join(p.cmdline())]
        assert len(workers) == 2
        answer = requests.post(url, json={"dataframe_records": [{"text": QUESTION}]}, timeout=60)
        assert answer.status_code == 200
        process.kill()
        assert not psutil.wait_procs(workers, timeout=20)[1]


@pytest.mark.slow
def test_a_model_that_cannot_be_loaded_is_said_and_not_tried_again(tmp_path: Path) -> None:
    argv, env = serve_command(tmp_path, "127.0.0.1", 0, "--workers", "2")
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=200)  # it ends by itself
    assert f"{tmp_path} cannot be served: " in done.stderr and "Traceback" not in done.stderr
