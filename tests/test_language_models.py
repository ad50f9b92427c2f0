"""Language models of Hugging Face through the whole job, as a person starts it: from their folder to the gate."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner, Result

from orchestration.cli import main
from training.tokenizer import fit_tokenizer

pytestmark = pytest.mark.slow


def _llama(size: dict[str, int]) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(**size, **shape, tie_word_embeddings=True))


def _gpt2(size: dict[str, int]) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(**size, n_positions=64, n_embd=32, n_layer=2, n_head=4))


def _gpt_neox(size: dict[str, int]) -> Any:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return GPTNeoXForCausalLM(GPTNeoXConfig(**size, **shape))


def _bert(size: dict[str, int]) -> Any:
    from transformers import BertConfig, BertForMaskedLM

    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return BertForMaskedLM(BertConfig(**size, **shape))


@pytest.fixture
def run(tiny: Path, tmp_path: Path) -> Callable[..., Result]:
    """`triptych run` with a new language model of a make, stored in a dtype, and its own fast tokenizer."""

    def run(make: Callable[[dict[str, int]], Any], dtype: torch.dtype, *settings: str, train: str = "full") -> Result:
        from transformers import PreTrainedTokenizerFast

        fitted = fit_tokenizer(["Is it bright?", "Is it high?", "yes", "no"] * 5, 300)
        tokens = {"bos_token": fitted.bos_token, "eos_token": fitted.eos_token}  # and none for padding
        folder = tmp_path / "llm"
        PreTrainedTokenizerFast(tokenizer_object=fitted.backend_tokenizer, **tokens).save_pretrained(folder)
        torch.manual_seed(0)
        special = {"vocab_size": len(fitted), "bos_token_id": fitted.bos_token_id, "eos_token_id": fitted.eos_token_id}
        make(special).to(dtype).save_pretrained(folder)
        llm = f"model.llm={{model: {folder}, train: {train}}}"
        options = [part for value in (llm, *settings) for part in ("--set", value)]
        return CliRunner().invoke(main, ["run", str(tiny), "--json", *options])

    return run


@pytest.mark.parametrize(
    ("make", "dtype", "precision", "output", "train"),
    [
        (_llama, torch.bfloat16, "float32", "text", "lora"),
        pytest.param(_gpt2, torch.float16, "bfloat16", "text", "full", marks=pytest.mark.soak),
        pytest.param(_gpt_neox, torch.float32, "bfloat16", "class", "frozen", marks=pytest.mark.soak),
    ],
)
def test_a_stored_language_model_comes_to_the_gate_and_answers_as_it_was_measured(
    run: Callable[..., Result], tiny: Path, make: Any, dtype: torch.dtype, precision: str, output: str, train: str
) -> None:
    from training import runs

    prompt = "{soft}{text} {speaker}"
    tiny.write_text(tiny.read_text().replace("model: {", f"model: {{prompt: '{prompt}', "))
    result = run(make, dtype, f"training.precision={precision}", f"model.output={output}", train=train)
    assert result.exit_code == 0, result.output
    shutil.rmtree(tiny.parents[1] / "llm")  # the model needs it no more
    told = json.loads(result.stdout.splitlines()[-1])
    assert told["model"]["aliases"] == ["challenger", "champion"]
    uri = f"sqlite:///{tiny.parents[1] / 'home' / 'mlflow.db'}"
    file = tiny.parent / "predictions.parquet"
    file.write_bytes(runs.read_artifact(uri, told["mlflow_run_id"], "predictions.parquet"))
    measured = pq.read_table(file)
    texts = measured.filter(pc.equal(measured["subset"], "text")).to_pylist()[:3]
    assert len(texts) == 3
    query = "SELECT *, attributes->>'speaker' AS speaker FROM samples JOIN clean_text c ON c.id = text_id"
    rows = CliRunner().invoke(main, ["sql", "tiny", "--json", query])
    asked = {row["sample_id"]: row for row in json.loads(rows.stdout.splitlines()[-1])["rows"]}
    for row in texts:
        text, speaker = (asked[row["sample_id"]][name] for name in ("text", "speaker"))
        columns = [] if speaker is None else ["--column", f"speaker={speaker}"]
        answer = CliRunner().invoke(main, ["predict", "tiny", "--text", text, *columns, "--json"])
        assert json.loads(answer.stdout.splitlines()[-1])["predictions"][0]["prediction"] == row["prediction"]


def test_a_masked_language_model_ends_the_run_in_one_sentence(run: Callable[..., Result]) -> None:
    result = run(_bert, torch.float32)
    assert result.exit_code == 1
    assert "(bert), which is not causal" in result.stderr.splitlines()[-1], result.stderr
    assert "Traceback" not in result.stderr


def test_a_text_that_is_too_long_for_the_positions_ends_the_run_before_training(
    run: Callable[..., Result], tiny: Path
) -> None:
    table = tiny.parent / "questions.csv"
    table.write_text(table.read_text().replace("Is it bright? (1)", "Is it bright? " * 40))
    result = run(_gpt2, torch.float32)
    assert result.exit_code == 1
    assert not any(line.startswith("    model:") for line in result.stderr.splitlines()), "a baseline may have begun"
    # Baselines read fewer soft tokens, so that they have more room.
    assert "set features.text.max_tokens to 57 or less" in result.stderr.splitlines()[-1], result.stderr
