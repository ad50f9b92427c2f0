"""The contract of a variant: a smaller or faster form of a trained model, made of its bundle (`training.score`), which
answers like any bundle."""

import importlib.util
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from training.catalog import VARIANTS
from training.family import Choice
from training.outputs.base import Output
from training.records import Answer

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

    from training.model import FusionModel
    from training.model_config import FusionConfig
    from training.settings import ModelSettings

FILE = "variant.json"  # in a bundle: kind and options of what it is a variant of, and what its kind keeps there
WEIGHTS = "variant.safetensors"


class AnsweringBundle(Protocol):
    """A loaded model as whoever asks it sees it: `FusionModel`, or what stands in its place."""

    @property
    def config(self) -> "FusionConfig": ...

    @property
    def output(self) -> Output: ...

    @property
    def prompt_room(self) -> int | None: ...

    def eval(self) -> Any: ...

    def scored_answers(
        self, batch: "dict[str, Tensor]", tokenizer: "PreTrainedTokenizerBase", shuffle: "Tensor | None" = None
    ) -> list[Answer]: ...

    def pooled_x_m(self, batch: "dict[str, Tensor]") -> "Tensor": ...


class Variant:
    """Writes a model in another form, and loads it again. An object is plain and light: project files are checked by
    the class, so its module imports torch inside methods only. A kind with options takes them as `options`."""

    version: ClassVar[int] = 1  # count up when the same model becomes another one
    packages: ClassVar[tuple[str, ...]] = ()  # beside those of every model: to make it, and to load it

    def refusal(self, model: "ModelSettings", output: Output, several: Mapping[str, Any]) -> str | None:
        """Why there is none of models of these settings, as a sentence's end; None: there is one.

        Args:
            several: of `align.several`.
        """
        return None

    def write(self, model: "FusionModel", folder: Path) -> dict[str, Any]:
        """Writes the model, in eval mode on the CPU, into its bundle; returns what `load` needs to know beside it, as
        JSON-able values. The model may be changed: nobody needs it any more.

        Raises:
            ValueError: this model cannot be written so; the message says why.
        """
        raise NotImplementedError

    def load(self, folder: Path, device: "torch.device", known: Mapping[str, Any]) -> Any:
        """What was written, in eval mode, as an `AnsweringBundle`. Args: `known` is what `write` returned."""
        raise NotImplementedError

    def check_installed(self, kind: str) -> None:
        """Raises ValueError: packages are not there; the message says what to install."""
        if lacking := [name for name in self.packages if importlib.util.find_spec(name) is None]:
            raise ValueError(f"variant {kind} needs {', '.join(lacking)}: pip install 'triptych[variants]'")


class WeightsVariant(Variant):
    """The same network, of which some weights are kept in another way, in WEIGHTS."""

    def stored(self, model: "FusionModel") -> "dict[str, Tensor]":
        """What WEIGHTS holds of a model's weights."""
        raise NotImplementedError

    def restore(self, model: "FusionModel", tensors: "dict[str, Tensor]") -> "dict[str, Tensor]":
        """Gives a model the weights that are kept in another way; returns the others, and those that it has as any
        weights, by their names."""
        raise NotImplementedError

    def write(self, model: "FusionModel", folder: Path) -> dict[str, Any]:
        from safetensors.torch import save_file

        save_file({name: tensor.contiguous() for name, tensor in self.stored(model).items()}, folder / WEIGHTS)
        return {}

    def load(self, folder: Path, device: "torch.device", known: Mapping[str, Any]) -> Any:
        from safetensors.torch import load_file

        from training.model import FusionModel
        from training.model_config import FusionConfig

        model = FusionModel(FusionConfig.from_pretrained(folder))
        given, own = load_file(folder / WEIGHTS), {*own_weights(model)}
        if other := sorted({name.partition("/")[0] for name in given} ^ own):
            raise ValueError(f"{folder / WEIGHTS} holds no such model as config.json says: {', '.join(other[:3])}")
        model.load_state_dict(self.restore(model, given), strict=False)
        model.output.restore(folder)
        return model.eval().to(device)

    @staticmethod
    def _names(given: Mapping[str, Any]) -> set[str]:
        """The weights that tensors called NAME/PART are of."""
        return {name.partition("/")[0] for name in given if "/" in name}


def own_weights(model: "nn.Module") -> "dict[str, Tensor]":
    """All that a model keeps, each tensor once, though two layers share it."""
    kept = model.state_dict()
    names = [name for name, _ in (*model.named_parameters(), *model.named_buffers())]
    return {name: kept[name] for name in names if name in kept}


def matrices(model: "nn.Module", kinds: "tuple[type[nn.Module], ...]") -> "dict[str, nn.Module]":
    """Layers of these kinds with a weight of their own, which no other layer has as well; by its name."""
    found = {f"{name}.weight": layer for name, layer in model.named_modules() if isinstance(layer, kinds)}
    users: dict[int, int] = {}
    for layer in model.modules():
        weight = layer._parameters.get("weight")
        users[id(weight)] = users.get(id(weight), 0) + 1
    return {name: layer for name, layer in found.items() if users[id(layer.weight)] == 1}


def write_variant(choice: Choice, bundle: Path, target: Path) -> None:
    """Makes the bundle of a variant of the model in `bundle`.

    Raises:
        ValueError: there is none of this model, or packages are not there.
    """
    from training.model import FusionModel

    variant = VARIANTS.make(choice)
    variant.check_installed(choice.kind)
    model = FusionModel.from_pretrained(bundle).eval()
    if model.config.adaptation.train != "full":
        model.merged()
    shutil.copytree(bundle, target, ignore=shutil.ignore_patterns("model*.safetensors", "base", "config.json"))
    model.config.save_pretrained(target)
    known = variant.write(model, target)
    (target / FILE).write_text(json.dumps({"variant": choice.plain(), "known": known}))
    with (target / "README.md").open("a") as card:
        card.write(f"\nThis folder holds its variant `{choice}`, which `training.score.Answerer` reads as any other.\n")


def load_bundle(bundle: Path, device: "torch.device") -> AnsweringBundle:
    """The model of a bundle, be it a variant or not, in eval mode.

    Raises:
        ValueError: packages that a variant needs are not there, or its files are damaged.
    """
    if not (bundle / FILE).is_file():
        from training.model import FusionModel

        model: AnsweringBundle = FusionModel.from_pretrained(bundle).eval().to(device)
        return model
    said = json.loads((bundle / FILE).read_text())
    choice = Choice.from_plain(said["variant"])
    variant = VARIANTS.make(choice)
    variant.check_installed(choice.kind)
    loaded: AnsweringBundle = variant.load(bundle, device, said["known"])
    return loaded


def name_of(choice: Choice) -> str:
    """As tables call it: the kind, and after it the values of its options."""
    return "-".join([choice.kind, *map(str, choice.options.values())])


def choose_variants(value: Any) -> tuple[Choice, ...]:
    """What the project file says, checked. Raises ValueError: there is no such kind or option, or one twice."""
    listed: Sequence[Any] = value if isinstance(value, list | tuple) else [value]
    choices = tuple(VARIANTS.choose(one) for one in listed)
    names = [name_of(choice) for choice in choices]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"variants has {twice[0]} twice: each once")
    return choices
