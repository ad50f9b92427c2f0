"""Frozen, LoRA or whole: what is trained of a part, at which rate, what stays still, and what can be folded in."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    ResNetConfig,
    ResNetModel,
    ViTConfig,
    ViTModel,
)

from training.adaptation import (
    Adaptation,
    adapt,
    base_names,
    halve,
    hold_still,
    lora_layers,
    merge,
    parameter_groups,
    restore,
)

SIZE: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
DECODER = SIZE | {"vocab_size": 40, "num_key_value_heads": 1, "attention_dropout": 0.5}
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
MODELS: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**DECODER, tie_word_embeddings=True)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**DECODER)),
    "gemma": lambda: GemmaForCausalLM(GemmaConfig(**DECODER, head_dim=8)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**DECODER)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2)),
    "vit": lambda: ViTModel(ViTConfig(**SIZE, image_size=8, patch_size=4, attention_probs_dropout_prob=0.5), False),
    "resnet": lambda: ResNetModel(ResNetConfig(**RESNET)),  # no linear layer, and batch norm
}
TARGETS = {"resnet": ("convolution",), "gpt2": ("attn.c_attn", "c_proj")}


class Whole(nn.Module):
    """A model with a part that is pretrained."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.before, self.part = nn.Linear(2, 2), MODELS[kind]()

    def says(self) -> torch.Tensor:
        generator = torch.Generator().manual_seed(1)
        if hasattr(self.part, "lm_head"):
            return self.part(input_ids=torch.randint(40, (2, 5), generator=generator)).logits
        return self.part(pixel_values=torch.rand(2, 3, 8, 8, generator=generator)).last_hidden_state


def trained(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("kind", MODELS)
def test_a_frozen_part_has_no_gradient_and_stays_still(kind: str) -> None:
    model = Whole(kind).eval()
    said, stored = model.says(), {name: tensor.clone() for name, tensor in model.part.state_dict().items()}
    adapt(model.part, Adaptation(train="frozen"), "model.llm")
    model.train()
    hold_still(model)
    assert model.before.training and trained(model) == {"before.weight", "before.bias"}
    assert torch.equal(model.says(), said)  # without dropout, and by the averages that batch norm was trained with
    assert all(torch.equal(tensor, stored[name]) for name, tensor in model.part.state_dict().items())
    assert base_names(model) == {f"part.{name}" for name in stored}


@pytest.mark.parametrize("kind", MODELS)
def test_lora_trains_its_own_tensors_and_can_be_folded_into_the_weights(kind: str) -> None:
    model = Whole(kind).eval()
    said, names, size = model.says(), set(model.part.state_dict()), sum(p.numel() for p in model.part.parameters())
    adapt(model.part, Adaptation(train="lora", rank=2, dropout=0.5, targets=TARGETS.get(kind, ())), "model.llm")
    torch.testing.assert_close(model.says(), said)  # it adds nothing yet
    own = trained(model.part)
    assert own and all(".lora_" in name for name in own)
    assert len(base_names(model)) == len(names) and not base_names(model) & {f"part.{name}" for name in own}
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 0.05)
    with_gradient = set[str]()
    for _ in range(2):  # the second matrix of LoRA starts at zero, so the first one gets a gradient at the second step
        model.train()
        hold_still(model)
        assert {n for n, m in model.part.named_modules() if m.training and ".lora_dropout." not in f".{n}"} == set()
        model.says().square().sum().backward()
        with_gradient |= {n for n, p in model.part.named_parameters() if p.grad is not None and p.grad.any()}
        optimizer.step()
        optimizer.zero_grad()
    assert with_gradient == own
    hold_still(model.train())
    assert not torch.equal(model.says(), model.says())  # LoRA's own dropout
    learned = model.eval().says()
    assert not torch.allclose(learned, said, atol=1e-3)
    merge(model)
    torch.testing.assert_close(model.says(), learned, rtol=1e-4, atol=1e-5)
    assert set(model.part.state_dict()) == names and sum(p.numel() for p in model.part.parameters()) == size


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("train", ["frozen", "lora"])
def test_frozen_weights_in_bfloat16_say_what_autocast_says_and_come_back(kind: str, train: Any) -> None:
    model = Whole(kind).eval()
    targets = TARGETS.get(kind, ()) if train == "lora" else ()
    adapt(model.part, Adaptation(train=train, targets=targets), "model.llm")
    stored = {name: tensor.clone() for name, tensor in model.part.state_dict().items()}
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        said = model.says()
        whole = halve(model)
        assert len(whole) >= 4 and all(parameter.dtype == torch.bfloat16 for parameter in whole)
        assert not any(parameter.requires_grad for parameter in whole)
        assert torch.equal(model.says(), said)
    assert restore(whole) == {}
    assert all(torch.equal(tensor, stored[name]) for name, tensor in model.part.state_dict().items())


def test_a_target_that_is_not_there_is_named_before_weights_are_loaded() -> None:
    with torch.device("meta"):
        part = MODELS["llama"]()
    heard = r"model.llm: targets c_attn: .*; LoRA can be added to q_proj, k_proj, v_proj, o_proj, gate_proj, .*"
    with pytest.raises(ValueError, match=heard):
        adapt(part, Adaptation(train="lora", targets=("q_proj", "c_attn")), "model.llm")
    with pytest.raises(ValueError, match=r"targets \(none: all linear layers\): .* added to convolution"):
        lora_layers(MODELS["resnet"](), (), "model.encoders.image")
    assert lora_layers(part, ("0.self_attn.q_proj",), "") == ["model.layers.0.self_attn.q_proj"]
    assert not any("lm_head" in name for name in lora_layers(part, (), ""))
    adapt(part, Adaptation(train="lora"), "model.llm")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"train": "adapter"}, "train is 'adapter', expected frozen, lora or full"),
        ({"train": "lora", "rank": 0}, "rank is 0, expected at least 1"),
        ({"train": "lora", "alpha": -1.0}, "alpha is -1.0"),
        ({"train": "lora", "dropout": 1.0}, "dropout is 1.0"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0, expected null or a positive number"),
        ({"train": "frozen", "learning_rate": 1e-4}, "null where train is frozen"),
        ({"train": "full", "rank": 4}, "rank is 4, expected nothing where train is full: it is of train: lora"),
    ],
)
def test_what_cannot_be_is_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Adaptation(**values)


def test_each_part_has_its_learning_rate() -> None:
    model = Whole("vit")
    model.other = MODELS["gpt2"]()
    adapt(model.part, Adaptation(train="lora", learning_rate=1e-3), "model.encoders.image")
    adapt(model.other, Adaptation(learning_rate=1e-5), "model.llm")
    decayed = {name for name, _ in model.named_parameters() if not name.endswith("bias") and "ln_" not in name}
    groups = parameter_groups(model, decayed, 0.1)
    optimizer = torch.optim.AdamW(groups, lr=3e-4)
    found = [(group["lr"], group["weight_decay"], len(group["params"])) for group in optimizer.param_groups]
    names = [name for name, _ in model.other.named_parameters()]
    bare = [name for name in names if name.endswith("bias") or "ln_" in name]
    assert found[:2] == [(3e-4, 0.1, 1), (3e-4, 0.0, 1)]  # the training's own come first: it is what is logged
    lora = (1e-3, 0.1, len(trained(model.part)))
    assert set(found[2:]) == {lora, (1e-5, 0.1, len(names) - len(bare)), (1e-5, 0.0, len(bare))}
    assert sum(len(group["params"]) for group in groups) == len(trained(model))
