"""The whole way from features to logits as one ONNX graph, which onnxruntime runs.

Shapes: B rows, N modalities, T soft tokens of each, C logits, D width.
"""

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from training.catalog import FUSIONS, PRETRAINED_ENCODERS
from training.outputs.base import Asked, Output
from training.outputs.linear import HeadOutput
from training.records import Answer
from training.variants.base import Variant

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

    from training.model import FusionModel
    from training.settings import ModelSettings

GRAPH = "model.onnx"
_NEAR = 1e-4  # that the graph says the same as the model


class OnnxVariant(Variant):
    """Encoders, fusion, language model and head in one graph, from what a `Collator` makes of rows to their logits and
    x_m; what becomes of logits the output says, in Python. All rows of a batch are encoded, also where they lack a
    modality, since a graph has no rows of its own choice; what they lack is hidden behind the encoder."""

    packages = ("onnx", "onnxruntime")

    def refusal(self, model: "ModelSettings", output: Output, several: Mapping[str, Any]) -> str | None:
        if output.reads_answers or not isinstance(output, HeadOutput):
            return f"output {model.output.kind} writes its answers step by step, and a graph runs once"
        if FUSIONS.load(model.fusion.kind).late:
            return f"fusion {model.fusion.kind} reads each modality of a row by itself, as many as the row has"
        if several:
            return f"align.several gives rows of {', '.join(several)} as many contents as they have"
        if pretrained := [m for m, encoder in model.encoders.items() if encoder.kind in PRETRAINED_ENCODERS]:
            return f"the encoder of {pretrained[0]} is one of Hugging Face's, which reads rows in portions"
        return None

    def write(self, model: "FusionModel", folder: Path) -> dict[str, Any]:
        import torch

        from training.onnx_graph import export

        whole = _example(model, folder)
        export(model, whole, folder / GRAPH)
        graph = OnnxModel(folder, torch.device("cpu"), model.prompt_room)
        for batch in _others(whole):
            with torch.inference_mode():
                logits, x_m = model(**batch).logits.float(), model.pooled_x_m(batch)
            for name, wanted, said in zip(("logits", "x_m"), (logits, x_m), graph.run(batch), strict=True):
                if not torch.allclose(said, wanted, rtol=_NEAR, atol=_NEAR):
                    off = float((said - wanted).abs().max())
                    raise ValueError(
                        f"the ONNX graph says other {name} than the model (by {off:.2g}): something in it depends "
                        "on its inputs in a way that a graph cannot hold"
                    )
        return {"prompt_room": model.prompt_room}

    def load(self, folder: Path, device: "torch.device", known: Mapping[str, Any]) -> "OnnxModel":
        return OnnxModel(folder, device, known["prompt_room"])


class OnnxModel:
    """An `AnsweringBundle` whose network onnxruntime runs, on the GPU where that is asked for and its build can."""

    def __init__(self, folder: Path, device: "torch.device", prompt_room: int | None) -> None:
        import onnxruntime
        import torch

        from training.model_config import FusionConfig

        self.config, self.prompt_room = FusionConfig.from_pretrained(folder), prompt_room
        self.output = self.config.make_output()
        self.output.restore(folder)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # its warnings are of optimizations that it does not do
        wanted = ["CUDAExecutionProvider"] if device.type == "cuda" else []
        there = [name for name in wanted if name in onnxruntime.get_available_providers()]
        self._session = onnxruntime.InferenceSession(folder / GRAPH, options, [*there, "CPUExecutionProvider"])

    def eval(self) -> "OnnxModel":
        return self

    def scored_answers(
        self, batch: "dict[str, Tensor]", tokenizer: "PreTrainedTokenizerBase", shuffle: "Tensor | None" = None
    ) -> list[Answer]:
        if shuffle is not None:
            raise ValueError("the soft tokens of other rows cannot be given to an ONNX graph: ask the full model")
        logits, _ = self.run(batch)
        # What an output asks of a model is what the graph has said already.
        read = SimpleNamespace(last_hidden_state=logits)
        said: Any = SimpleNamespace(head=lambda states, _mask: states, read=lambda *_: read, config=self.config)
        given = dict(zip(self.config.modalities, batch["present"].unbind(1), strict=True))
        return self.output.scored_answers(Asked(said, logits, batch["present"], tokenizer, present=given))

    def pooled_x_m(self, batch: "dict[str, Tensor]") -> "Tensor":
        return self.run(batch)[1]

    def run(self, batch: "dict[str, Tensor]") -> "list[Tensor]":
        """Logits (B, C) and pooled x_m (B, D)."""
        import torch

        feed = {one.name: _fitting(batch[one.name], one.shape).numpy() for one in self._session.get_inputs()}
        return [torch.from_numpy(said) for said in self._session.run(["logits", "x_m"], feed)]


def _example(model: "FusionModel", folder: Path) -> "dict[str, Tensor]":
    """A batch of two rows that have all modalities, and columns; each content has several positions."""
    from transformers import AutoTokenizer

    from training.collator import make_collator
    from training.onnx_graph import moving
    from training.processor import Processor

    processor = Processor.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder, config=model.config, trust_remote_code=False)
    kinds = {m: processor.modalities[m] for m in model.config.modalities}
    files = {m: kind.example() for m, kind in kinds.items()}
    row = processor.row(**{m: file.decode() if kinds[m].as_string else file for m, file in files.items()})
    row |= {"columns": dict.fromkeys(model.config.columns, "one of these")}
    batch = make_collator(model, tokenizer, processor.features)([row, row])
    for name, tensor in batch.items():
        for at in moving(name, tensor)[1:]:
            batch[name] = tensor.repeat_interleave(1 if tensor.shape[at] > 1 else 3, at)
    return batch


def _others(whole: "dict[str, Tensor]") -> "Iterator[dict[str, Tensor]]":
    """Batches of other sizes: each subset of the modalities in a row, rows together and alone, contents that are all
    shorter, or padded."""
    import torch

    from training.onnx_graph import moving

    present = whole["present"]
    subsets = torch.tensor([s for s in itertools.product((False, True), repeat=present.shape[1]) if any(s)])
    rows = torch.zeros(len(subsets), dtype=torch.long)
    together = {name: tensor[rows] for name, tensor in whole.items()} | {"present": subsets}
    yield together
    yield {name: tensor[-1:] for name, tensor in together.items()}
    shorter = {}
    for name, tensor in together.items():
        for at in moving(name, tensor)[1:]:
            tensor = tensor.narrow(at, tensor.shape[at] // 2, tensor.shape[at] - tensor.shape[at] // 2)
        shorter[name] = tensor
    yield shorter
    padded = {}
    for name in (name for name in together if name.endswith("_mask")):
        half = together[name].shape[-1] // 2
        there = torch.arange(together[name].shape[-1]) >= half
        padded[name] = together[name] & (there if name in ("prompt_mask", "column_mask") else there.flip(0))
    yield together | padded


def _fitting(tensor: "Tensor", shape: "list[int | str]") -> "Tensor":
    """Of features that no row has, whose width nobody knew: zeros of the width that the graph knows."""
    wanted = [n if isinstance(n, int) else size for n, size in zip(shape, tensor.shape, strict=True)]
    return tensor if list(tensor.shape) == wanted else tensor.new_zeros(wanted)
