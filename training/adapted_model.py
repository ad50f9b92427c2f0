"""How the fused model is stored where its language model is frozen or trained through LoRA: what was trained, and
beside it, in the folder `base`, the files of the language model as they were.

A checkpoint has what was trained only: a training that goes on reads the language model where it read it first.
"""

from os import PathLike
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_NAME

from training.adaptation import base_names, hold_still, merge
from training.llm import read_llm
from training.model_config import FusionConfig
from training.model_files import check_digest, copy_model

BASE = "base"


class AdaptedModel(PreTrainedModel):
    """A model whose part `llm` is as `config.adaptation` says, made as `cls(config, llm)`."""

    llm: Any
    output: Any
    config: FusionConfig
    _in_training = False  # said by `train`, as opposed to how modules are made

    def train(self, mode: bool = True) -> "AdaptedModel":
        if not (mode and self._in_training):  # the Trainer says so at each step, and there are thousands of modules
            super().train(mode)
            hold_still(self)
            self._in_training = mode
        return self

    def leave_out_base(self, of_encoders: bool = False) -> None:
        """From now on, what of the language model is not trained is not stored with what is; nor what of encoders is
        not, which is for checkpoints: a model that answers has all of its encoders."""
        of_llm = self.config.adaptation.train != "full"
        base = [n for n in sorted(base_names(self)) if (of_llm if n.startswith("llm.") else of_encoders)]
        self._keys_to_ignore_on_save = base or None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, config: Any = None, **options: Any) -> Any:
        """The model that `save_pretrained` wrote, in eval mode. `options` are those of transformers; where what was not
        trained lies beside what was, the model is read in float32, whatever they say.

        Raises:
            ValueError: these files are not there, or they are others.
        """
        folder = Path(pretrained_model_name_or_path)
        config = config or FusionConfig.from_pretrained(folder)
        if config.adaptation.train == "full":
            whole = super().from_pretrained(pretrained_model_name_or_path, *args, config=config, **options)
            whole.output.restore(folder)
            return whole
        check_digest(folder / BASE, config.llm_base["sha256"], f"the language model {config.llm_base['model']}")
        model = cls(config, read_llm(folder / BASE, config.make_output()))
        missing, unexpected = model.load_state_dict(load_file(folder / SAFE_WEIGHTS_NAME), strict=False)
        base = set(model._keys_to_ignore_on_save or ())
        if set(missing) != base or unexpected:
            other = sorted({*missing, *unexpected} ^ base)
            raise ValueError(f"{folder} holds no such model as its config.json says: {', '.join(other)}")
        model.output.restore(folder)
        return model.eval()

    def save_pretrained(self, save_directory: str | PathLike[str], *args: Any, **options: Any) -> None:
        """What was trained; and the files that the rest was read from, so that the folder answers anywhere.

        Raises:
            ValueError: these files are not there any more, or were changed.
        """
        super().save_pretrained(save_directory, *args, **options)
        self.output.save(Path(save_directory))
        if self.config.adaptation.train != "full":
            source, base = Path(str(self.llm.name_or_path)), self.config.llm_base
            copy_model(source, Path(save_directory) / BASE, base["sha256"], f"the language model {base['model']}")

    def merged(self) -> "AdaptedModel":
        """Itself, with what LoRA learned folded into the language model: it needs no PEFT, and is saved whole."""
        merge(self.llm)
        self.config.llm_training = {}
        self.leave_out_base()
        return self
