"""Every benchmark runs, in a small size, and says what its lines promise."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestration.examples.questions import WORDINGS

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("TRIPTYCH_SHARED", ROOT.parent / "shared" / "data"))
KEYS = {"benchmark", "what", "unit", "ours", "beside", "reference", "ratio", "repetitions", "memory_mb", "cores"}


def lines(name: str, *options: str) -> list[dict]:
    command = [sys.executable, "-m", f"benchmarks.{name}", "--quick", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    for line in found:
        assert line.keys() >= KEYS | {"reference_memory_mb"}
        assert line["benchmark"] == name
        assert line["repetitions"] == 1, "it is to be seen that it works"
        assert min(line["ours"], line["reference"], line["memory_mb"], line["reference_memory_mb"]) > 0
        assert line["ratio"] == pytest.approx(line["ours"] / line["reference"], rel=0.01, abs=0.001)
    return found


@pytest.mark.soak
def test_featurize_on_media_of_its_own(tmp_path):
    found = {(line["what"], line["beside"]) for line in lines("featurize", "--data", str(tmp_path))}
    peers = {("64 JPEG 640 x 480", "bare")}
    assert found == peers | {
        (what, peer) for what in ("64 JPEG 640 x 480", "64 WAV 8 kHz") for peer in ("DataLoader", "Hugging Face map")
    }


@pytest.mark.soak
def test_a_rerun_processes_nothing_and_ten_new_items_ten():
    processed = {line["what"]: line["processed"] for line in lines("rerun")}
    assert {what.rpartition(":")[0]: counts for what, counts in processed.items()} == {
        f"1,000 {kind}, {what}": [count]
        for kind in ("rows", "files")
        for what, count in (("nothing changed", 0), ("10 new", 10))
    }


@pytest.mark.soak
def test_of_more_items_only_the_new_ones_are_processed():
    found = lines("scale", "--kinds", "tables")
    processed = {line["what"].rpartition(":")[0]: line["processed"] for line in found}
    counts = {"first run": 1000, "nothing new": 0, "1 % new": 10}
    assert processed == {f"1,000 items in tables, {name}": count for name, count in counts.items()}
    assert all("slope" in line for line in found)


@pytest.mark.slow
def test_alignment_finds_what_the_bare_query_finds():
    # It ends with an error where the pairs differ.
    found = {line["what"] for line in lines("alignment")}
    pairs = {f"20,000 events, {match}: pairs" for match in ("backward", "nearest")}
    assert found == {*pairs, "2,000 events, backward: whole step"}


@pytest.mark.slow
def test_engines_make_the_same_rows():
    found = lines("engines")
    assert {(line["what"], line["beside"]) for line in found} == {
        ("40 photos, two nodes of Ray", "one node of Ray"),
        ("40 photos, threads", "one node of Ray"),
    }
    assert all(line["rows"] == [40, 40] and line["speedup"] > 0 for line in found)


@pytest.mark.soak
@pytest.mark.timeout(1200)  # the example's lake
def test_training_ends_with_the_weights_of_the_bare_loop(tmp_path):
    # It ends with an error where the weights differ.
    peers = {line["beside"] for line in lines("training", "--folder", str(tmp_path))}
    assert peers == {"bare loop", "bare loop, batches ready made"}


@pytest.mark.soak
def test_a_model_with_encoders_is_timed_in_every_way_to_train_it():
    command = [sys.executable, "-m", "benchmarks.gpu", "--quick", "--seconds", "600"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    _device, _sizes, *found = map(json.loads, done.stdout.splitlines())
    lines = [line for line in found if "ms/step" in line]
    assert [line["side"] for line in lines] == 2 * ["ours", "loop"]
    assert all(min(line["ms/step"], line["tokens/s"], line["mfu"]) > 0 and line["padding"] < 1 for line in lines)
    assert [line["profile"]["matmul"] > 0 for line in found if "profile" in line] == 2 * [True]
    assert sum(line["what"] == "ours / loop" for line in found) == 2


@pytest.mark.soak
def test_embedding_is_timed_beside_the_bare_encoder():
    command = [sys.executable, "-m", "benchmarks.gpu_embedding", "--quick"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(line["ours"] > 0 for line in map(json.loads, done.stdout.splitlines()))


@pytest.mark.soak
def test_each_way_to_train_a_language_model_has_its_time_and_memory():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.finetune", "--quick"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    frozen, padded, lora, full, twice, half = found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["train"] for line in found] == ["frozen", "frozen", "lora", "full", "full", "lora"]
    assert frozen["padding"] < 0.1 < 0.3 < padded["padding"] and not padded["packing"]
    assert frozen["trained"] < lora["trained"] < full["trained"] == full["parameters"]
    assert frozen["checkpoint_mb"] < lora["checkpoint_mb"] < full["checkpoint_mb"]
    assert twice["gradient_checkpointing"] and half["precision"] == "bfloat16"
    assert all(min(line["ms/step"], line["tokens/s"], line["memory_mb"]) > 0 for line in found)


@pytest.mark.soak
@pytest.mark.timeout(1200)  # the whole example
def test_serving_answers_as_the_bare_model_does():
    # It ends with an error where the answers differ.
    found = {(line["what"], line["unit"]) for line in lines("serving")}
    ways = [f"{way}, rows: {count}" for way in ("predict", "HTTP") for count in (1, 64)]
    latencies = {(way, f"ms, {what}") for way in ways for what in ("median", "p95")}
    assert found == latencies | {("HTTP, clients: 32", "rows/s")}


@pytest.mark.soak
@pytest.mark.skipif(not (DATA / "spoken_digits").is_dir(), reason="needs the recordings of spoken_digits")
def test_an_unheard_speaker_is_asked_both_models():
    command = [sys.executable, "-m", "benchmarks.speakers", "--quick", "--speakers", "george", "--data", str(DATA)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (line,) = map(json.loads, done.stdout.splitlines())
    assert (line["held_out"], line["test_rows"]) == ("george", 1800)
    assert line["ours"].keys() == line["plain"].keys() == {"all", *WORDINGS}
    assert all(0 <= share <= 1 for side in ("ours", "plain") for share in line[side].values())


@pytest.mark.soak
@pytest.mark.skipif(not (DATA / "spoken_digits").is_dir(), reason="needs the recordings of spoken_digits")
def test_silos_are_asked_the_same_rows_as_the_model_of_all_of_them():
    command = [sys.executable, "-m", "benchmarks.federation", "--quick", "--data", str(DATA)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (line,) = map(json.loads, done.stdout.splitlines())
    assert len(line["silos"]) == 4 and all(silo == {"rows": 60, "rounds": 1} for silo in line["silos"].values())
    assert line["test_rows"] == 120 and 0 <= line["ours"] <= 1 and 0 <= line["reference"] <= 1


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "digits3").is_dir(), reason="needs digits3")
def test_fusions_and_single_modalities_are_asked_the_same_rows_and_trained_once(tmp_path):
    files = ["--data", str(DATA), "--folder", str(tmp_path), "--results", str(tmp_path / "results.jsonl")]
    command = [sys.executable, "-m", "benchmarks.digits3", "--quick", "--jobs", "2", *files]
    runs = [subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False) for _ in range(2)]
    assert all(done.returncode == 0 for done in runs), runs
    first, second = ([json.loads(line) for line in done.stdout.splitlines()] for done in runs)
    assert sum("training" in line for line in first) == 5
    assert [line for line in first if "what" in line] == second
    found = {line["what"]: line for line in second}
    assert list(found) == ["text", "image", "speech", "concat", "logit"]
    assert all(line["test_rows"] == 500 and 0 <= line["ours"] <= 1 for line in found.values())
    assert found["logit"]["shown"].keys() >= {"text", "image", "speech"}
    interval = found["logit"]["against_concat"]
    assert interval["low"] <= interval["difference"] <= interval["high"]
    assert interval["difference"] == pytest.approx(found["logit"]["ours"] - found["concat"]["ours"], abs=2e-4)


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "medical").is_dir(), reason="needs the x-rays of medical")
def test_who_only_knows_what_is_missing_tells_nothing_where_all_have_the_same():
    command = [sys.executable, "-m", "benchmarks.missing_notes", "--quick", "--data", str(DATA)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = {(line["model"], line["what"]): line for line in map(json.loads, done.stdout.splitlines())}
    same = ["text", "image", "given=image", "given=text+image"]
    assert lines.keys() == {(model, what) for model in ("blind", "seeing") for what in ("text+image", *same)}
    assert all(lines["blind", what]["low"] <= 0.5 <= lines["blind", what]["high"] for what in same)


@pytest.mark.soak
@pytest.mark.skipif(not (DATA / "spoken_digits").is_dir(), reason="needs the recordings of spoken_digits")
def test_adapters_stand_beside_the_shared_model_and_a_regression():
    command = [sys.executable, "-m", "benchmarks.personalization", "--quick", "--data", str(DATA)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["what"] for line in found] == [f"george, {n} samples" for n in (5, 20, 50)]
    assert all(0 <= line[name] <= 1 for line in found for name in ("shared", "bias", "lora", "regression"))


def test_the_product_does_not_import_them():
    for package in ("training", "assets", "orchestration"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                names = [node.module] if isinstance(node, ast.ImportFrom) else []
                names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                assert not any((name or "").split(".")[0] == "benchmarks" for name in names), path


@pytest.mark.soak
@pytest.mark.skipif(not (DATA / "smart_home").is_dir(), reason="needs the recordings of smart_home")
def test_planted_near_duplicates_are_found():
    command = [sys.executable, "-m", "benchmarks.near_duplicates", "--quick", "--data", str(DATA)]
    sets = ["--sets", "smart_home", "clothing", "commands"]
    done = subprocess.run([*command, *sets], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert {line["contents"] for line in found if "pairs" in line} == {6}
    ways = [line for line in found if "way" in line]
    assert len(ways) > 20 and sum(line["found"] for line in ways) > 0.9 * sum(line["planted"] for line in ways)


@pytest.mark.soak
@pytest.mark.timeout(1200)  # the data of the example are spoken first
def test_what_is_drawn_and_said_is_judged():
    command = [sys.executable, "-m", "benchmarks.mirror", "--quick"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    drawn, said = map(json.loads, done.stdout.splitlines())
    assert (drawn["answer"], said["answer"]) == ("drawn", "said")
    assert all(0 <= line["judge_on_made"] <= 1 and line["judge_on_real"] > 0.3 for line in (drawn, said))


@pytest.mark.slow
@pytest.mark.soak
def test_variants_are_measured_beside_the_full_model():
    found = lines("variants")
    names = {"int8", "int8_weights", "pruned", "pruned-0.8", "onnx"}
    units = {"bytes", "ms, median", "ms, p95", "rows/s", "accuracy"}
    assert {(line["what"], line["unit"]) for line in found} == {(name, unit) for name in names for unit in units}
    ratios = {(line["what"], line["unit"]): line["ratio"] for line in found}
    assert ratios["int8", "bytes"] < 0.6 and ratios["pruned-0.8", "bytes"] < ratios["pruned", "bytes"] < 0.8
    assert ratios["onnx", "accuracy"] == 1
