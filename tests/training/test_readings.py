"""Late fusion: what a model says of a row is the mean of what it says of each of the row's modalities alone; of hybrid
fusion also of all together."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from training.readings import AveragedModel, PromptTokens, Readings

MODALITIES = ("text", "image", "speech")


def only(row: dict[str, Any], modality: str) -> dict[str, Any]:
    return row | {m: None for m in MODALITIES if m != modality}


@pytest.mark.parametrize("fusion", ["logit", {"kind": "hybrid", "joint": "attention"}], ids=["logit", "hybrid"])
@pytest.mark.parametrize(
    "output", ["text", "class", {"kind": "several", "outputs": {"a": "text", "b": "class"}}], ids=str
)
@pytest.mark.parametrize("encoders", [{}, {"text": "small_transformer"}], ids=["prompt", "no prompt"])
def test_the_mean_over_the_modalities_present(
    rows: Any, make_model: Callable[..., Any], fusion: Any, output: Any, encoders: dict[str, str]
) -> None:
    model, batch = make_model(rows, fusion=fusion, output=output, encoders=encoders)
    model.eval()
    early, _ = make_model(rows, fusion="attention", output=output, encoders=encoders)
    early.load_state_dict({n.replace("fusion.joint.", "fusion."): w for n, w in model.state_dict().items()}, False)
    early.eval()
    logits = model(**batch).logits
    for row, said in zip(rows, logits, strict=True):
        alone = [only(row, m) for m in MODALITIES if row[m] is not None]
        _, single = make_model(alone, fusion="logit", output=output, encoders=encoders)
        expected = model(**single).logits
        if fusion != "logit" and len(alone) > 1:
            _, whole = make_model([row], fusion="attention", output=output, encoders=encoders)
            expected = torch.cat([expected, early(**whole).logits])
        expected = expected.mean(0)
        torch.testing.assert_close(said[: len(expected)], expected, rtol=1e-4, atol=1e-4)
    loss = model.output.loss(logits, batch["labels"])
    torch.testing.assert_close(model(**batch).loss, loss)


def test_text_is_written_with_the_mean_at_each_token(rows: Any, make_model: Callable[..., Any], tokenizer: Any) -> None:
    """Greedy, worked out with the single readings; all readings of a row go on with the same token."""
    model, batch = make_model(rows, fusion="logit", max_new_tokens=3)
    model.eval()
    with torch.no_grad():
        for p in model.llm.parameters():
            p.mul_(3)  # so that tokens differ
    row = rows[-1]
    alone = [only(row, m) for m in MODALITIES]
    written: list[int] = []
    for _ in range(3):
        _, single = make_model(alone, fusion="logit")
        single["labels"] = torch.tensor([[*written, 0]] * 3)
        written.append(int(model(**single).logits[:, len(written)].log_softmax(-1).mean(0).argmax()))
        if written[-1] == tokenizer.eos_token_id:
            break
    assert model.answer(batch, tokenizer)[-1] == tokenizer.decode(written, skip_special_tokens=True).strip()


def test_a_row_without_anything_is_read_once(rows: Any, make_model: Callable[..., Any], tokenizer: Any) -> None:
    empty = rows[0] | dict.fromkeys(MODALITIES)
    model, batch = make_model([rows[0], empty, rows[-1]], fusion="logit")
    model.eval()
    assert model(**batch).logits.isfinite().all()
    assert len(model.answer(batch, tokenizer)) == 3


def test_beams_of_one_row_are_averaged_each_with_its_own() -> None:
    readings = Readings.of(torch.tensor([[True, False], [True, True], [False, False]]))
    assert (readings.rows_R.tolist(), readings.modality_R.tolist()) == ([0, 1, 1, 2], [0, 0, 1, 2])
    assert readings.first_B.tolist() == [0, 1, 3]
    said: Tensor = torch.arange(16.0).reshape(8, 2)  # two beams of each reading
    expected = said.clone()
    expected[2] = expected[4] = (said[2] + said[4]) / 2
    expected[3] = expected[5] = (said[3] + said[5]) / 2
    assert torch.equal(readings.averaged(said), expected)
    mask = torch.ones(3, 2, 3, dtype=torch.bool)
    mask[0, 1] = mask[2] = False
    assert readings.masked(mask).any(2).tolist() == [[True, False], [True, False], [False, True], [False, False]]


def test_beams_end_alike_for_all_readings(rows: Any, make_model: Callable[..., Any], tokenizer: Any) -> None:
    """With beams, the readings of a row still write one and the same text."""
    model, batch = make_model(rows, fusion="logit")
    model.eval()
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    tokens, mask = model.encode(**inputs)
    readings, (embeddings, mask_RS) = model.alone(tokens, mask, PromptTokens(batch["prompt_ids"], batch["prompt_mask"]))
    ids = AveragedModel(model, readings).llm.generate(
        inputs_embeds=embeddings,
        attention_mask=mask_RS.long(),
        num_beams=3,
        do_sample=False,
        max_new_tokens=4,
        pad_token_id=tokenizer.pad_token_id,
    )
    assert torch.equal(ids, ids[readings.first_B.repeat_interleave(readings.rows_R.bincount())])


def test_an_outputs_head_is_averaged_too(rows: Any, make_model: Callable[..., Any], tokenizer: Any) -> None:
    """The class with the largest mean, whatever the readings say by themselves."""
    model, batch = make_model(rows, fusion="logit", output="class")
    model.eval()
    assert isinstance(model.head, nn.Module)
    chosen = model(**batch).logits.argmax(1)
    assert model.answer(batch, tokenizer) == [model.output.classes[n] for n in chosen.tolist()]
