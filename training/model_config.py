"""What decides the fused model's tensors, and what the model says of a batch."""

from dataclasses import dataclass, field
from typing import Any

from huggingface_hub.dataclasses import strict
from torch import Tensor
from transformers import AutoConfig, LlamaConfig, PreTrainedConfig
from transformers import utils as transformers_utils

from training.adaptation import Adaptation
from training.catalog import ENCODERS, MODALITIES, OUTPUTS
from training.encoders.base import Encoder
from training.outputs.base import Output
from training.prompt import columns
from training.validation import from_dict


@strict
class FusionConfig(PreTrainedConfig):
    """Everything that decides the model's tensors; `llm_config` is that of any causal language model."""

    model_type = "triptych_fusion"
    sub_configs = {"llm_config": AutoConfig}  # noqa: RUF012 - the form that transformers asks for

    modalities: list[str] = field(default_factory=lambda: list(MODALITIES.names()))
    encoders: dict[str, Any] = field(default_factory=dict)  # modality -> kind, or mapping of kind and options
    inputs: dict[str, Any] = field(default_factory=dict)  # modality -> fields of FeatureShape
    pretrained: dict[str, Any] = field(default_factory=dict)  # modality -> facts of an encoder that is: Encoder.start
    # modality -> contents that a row may have of it, each with `tokens` of its own, or the names of their views
    # (`training.views`); of others one
    several: dict[str, Any] = field(default_factory=dict)
    linear: list[str] = field(default_factory=list)  # modalities that `training.linear_model` reads
    # Of `training.personalization`: column, names of the groups that have an adapter, and its rank; {}: there are none.
    groups: dict[str, Any] = field(default_factory=dict)
    fusion: Any = "attention"  # as an encoder
    output: Any = "text"  # as an encoder
    fitted: dict[str, Any] = field(default_factory=dict)  # what the output learned of the training labels: Output.fit
    width: int = 96
    heads: int = 4
    tokens: int = 4
    dropout: float = 0.0
    max_new_tokens: int = 16
    # `model.prompt`: lists of token ids, and between them names of what rows fill in (SOFT, a modality, columns); none:
    # SOFT and the modality. Name -> what stands before it within the template, and is read as part of it.
    template: list[Any] = field(default_factory=list)
    leads: dict[str, str] = field(default_factory=dict)
    generation: dict[str, Any] = field(default_factory=dict)  # training.settings.GenerationSettings
    embedding_width: int | None = None  # of the language model's tokens, if not its hidden size
    # How the language model is trained (fields of `training.adaptation.Adaptation`, but for defaults), and which one it
    # was before: model and sha256 (`training.model_files.digest`); empty where it is made here.
    llm_training: dict[str, Any] = field(default_factory=dict)
    llm_base: dict[str, Any] = field(default_factory=dict)
    embedding_size: float | None = None  # of a pretrained one's tokens (root mean square): that of soft tokens at first
    llm_config: Any = None  # a dict (as read from config.json) becomes the configuration it describes

    def __post_init__(self, **kwargs: Any) -> None:
        if self.llm_config is None:
            self.llm_config = LlamaConfig()
        elif isinstance(self.llm_config, dict):
            self.llm_config = AutoConfig.for_model(**self.llm_config)
        super().__post_init__(**kwargs)

    @property
    def llm_width(self) -> int:
        """Of a token that the language model reads, and of what it makes of one."""
        return int(self.embedding_width or self.llm_config.get_text_config().hidden_size)

    @property
    def adaptation(self) -> Adaptation:
        """Of the language model."""
        return from_dict(Adaptation, self.llm_training)

    @property
    def prompt(self) -> str | None:
        """The modality that the language model reads as its prompt, beside what the fusion makes of it."""
        return next((m for m in self.modalities if self.encoder_class(m).reads_prompt), None)

    @property
    def columns(self) -> tuple[str, ...]:
        """Those of a sample's other columns that the language model reads, within the template."""
        return columns(part for part in self.template if isinstance(part, str))

    def encoder_class(self, modality: str) -> type[Encoder]:
        form = self.inputs[modality]["form"]
        return ENCODERS.load(ENCODERS.choose(self.encoders[modality], form).kind, form)

    def make_output(self) -> Output:
        return OUTPUTS.make(OUTPUTS.choose(self.output), self.fitted)


@dataclass
class ModelOutput(transformers_utils.ModelOutput):
    """What the model says of a batch; B rows."""

    loss: Tensor | None = None  # what training minimises; in eval mode the output's own loss; None without labels
    losses: dict[str, Tensor] | None = None  # in training: those that were added up, by name, not weighted
    logits: Tensor | None = None  # of the output: (B, ...)
    x_m: Tensor | None = None  # what the fusion made of the inputs (B, X, D)
    x_m_mask: Tensor | None = None  # (B, X), true where a soft token is read; None: all are
    tokens: dict[str, Tensor] | None = None  # e_m by modality, projected: what the fusion read (B, T, D)
    # In training, where an objective reads it: by modality the numbers of the rows (R,) that have it, and the logits
    # (R, ...) of these rows as if they had no other.
    alone: dict[str, tuple[Tensor, Tensor]] | None = None
    masks: dict[str, Tensor] | None = None  # (B, T), true where a token is real; a row that lacks a modality has none


# As transformers asks of a model that is not its own: `AutoConfig` and, with `training.model`, `AutoModel` know it.
AutoConfig.register(FusionConfig.model_type, FusionConfig, exist_ok=True)
