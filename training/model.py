"""The fused model: encoders -> projectors -> fusion -> language model -> answer.

    x_m = f(e_t, e_v, e_s)   soft tokens, read by the language model before the prompt
    y = M(x_m, prompt)       what the output makes of it: generated text, a class, ...

Shapes: B rows, C contents, N modalities, T soft tokens of each, X soft tokens of x_m, P prompt tokens, S = X + P
context, D width: of the encoders' tokens before the fusion, of the language model behind it.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, GenerationConfig, PreTrainedModel, initialization
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from training.adaptation import adapt
from training.adapted_model import AdaptedModel
from training.catalog import ENCODERS, FUSIONS
from training.compilation import CompiledLayers
from training.encoders.base import Encoder
from training.featurizers.base import FeatureShape
from training.fusions.base import Fusion
from training.layers import AttentionPool, ModelShape, Places, Readout, SharedSpace, SizedNorm
from training.linear_model import LinearModel
from training.llm import positions
from training.model_config import FusionConfig, ModelOutput
from training.objectives.base import Objective
from training.outputs.base import Asked
from training.outputs.linear import LinearOutput, with_linear
from training.packing import read_packed
from training.personalization import GroupAdapters
from training.prompt import SOFT
from training.readings import AveragedModel, PromptTokens, Readings, Views
from training.records import Answer
from training.sampling import sampled
from training.views import most


class FusionModel(AdaptedModel):
    """See the module. `config.modalities` are those the model can read; a row may lack any of them."""

    config_class = FusionConfig
    accepts_loss_kwargs = False
    supports_gradient_checkpointing = True
    _supports_sdpa = _supports_flash_attn = True

    def __init__(self, config: FusionConfig, llm: PreTrainedModel | None = None) -> None:
        """New weights, but for those of `llm`, the language model, where there is one."""
        super().__init__(config)
        shape = ModelShape(config.width, config.tokens, config.heads, config.dropout)
        encoders = {m: _make_encoder(config, m, shape) for m in config.modalities}
        self.encoders = nn.ModuleDict(encoders)
        self.projectors = nn.ModuleDict(
            {m: nn.Sequential(nn.LayerNorm(e.width), nn.Linear(e.width, config.width)) for m, e in encoders.items()}
        )
        # What the language model reads itself is one content: all texts of a row, one after the other.
        several = {m: most(places) for m, places in config.several.items() if m != config.prompt}
        self.places = nn.ModuleDict({m: Places(number, config.width) for m, number in several.items()})
        whole = replace(shape, tokens=config.tokens * max(several.values(), default=1))
        self.fusion = FUSIONS.make(FUSIONS.choose(config.fusion), len(config.modalities), whole)
        self.adapters: GroupAdapters | None = None
        if groups := config.groups:
            counts = len(groups["names"]), len(config.modalities)
            self.adapters = GroupAdapters(*counts, config.width, groups["rank"])
        self.to_llm = nn.Identity() if config.width == config.llm_width else nn.Linear(config.width, config.llm_width)
        size = config.embedding_size
        self.soft_norm = nn.Identity() if size is None else SizedNorm(config.llm_width, size)
        self.output = config.make_output()
        self.prompt = config.prompt  # a modality; the config makes featurizers to tell
        self.llm = self.output.language_model().from_config(config.llm_config) if llm is None else llm
        if self.output.reads_answers:  # how it writes says `config.generation`, and no file of a pretrained model
            self.llm.generation_config = GenerationConfig.from_model_config(self.llm.config)
        self.head = self.output.head(config.llm_width)
        # What answers beside the language model, once it is fitted, when training has ended.
        self.linear: LinearModel | None = None
        if config.linear:
            assert isinstance(self.output, LinearOutput)
            widths = {m: config.inputs[m]["width"] for m in config.linear}
            self.linear = LinearModel(widths, self.output.width)
        if self.prompt is None and not self.output.reads_answers and not config.template:
            self.get_input_embeddings().requires_grad_(False)  # no token is ever embedded
        # What training minimises, while it lasts (`training.train.fit`). Without any it is the output's own loss.
        self.objectives = nn.ModuleList()
        self.compiled: CompiledLayers | None = None  # of the language model, while training lasts
        self.packs = False  # rows that the language model reads, in training
        self.post_init()
        adapt(self.llm, config.adaptation, "model.llm")
        self.leave_out_base()

        self.whole: dict[nn.Parameter, Tensor] = {}  # of `halve`, while training lasts

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Conv2d):  # PyTorch's own; 0.02 would be far too small for convolutions
            fan_in = module.weight[0].numel()
            initialization.kaiming_uniform_(module.weight, a=math.sqrt(5))
            if module.bias is not None:
                initialization.uniform_(module.bias, -1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in))
        elif isinstance(module, Fusion | AttentionPool | GroupAdapters | Places | Readout | SharedSpace | SizedNorm):
            module.reset_parameters()
        else:
            super()._init_weights(module)

    def train(self, mode: bool = True) -> "FusionModel":
        super().train(mode)
        if self.compiled is not None:
            self.compiled.use(mode)
        return self

    def get_input_embeddings(self) -> nn.Module:
        return self.llm.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module | None:
        return self.llm.get_output_embeddings()

    def encode(
        self,
        present: Tensor,
        prompt_ids: Tensor | None = None,
        prompt_mask: Tensor | None = None,
        **features: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The projected tokens e_m of all modalities (B, N, T, D) and their mask (B, N, T), true where real.

        Only rows that have a modality are encoded, so what stands in the others is never read. The tokens of several
        contents of a row lie one behind the other, each at its place.

        Args:
            present: bool (B, N), which of `config.modalities` each row has.
            features: for each modality X the values `X` and, where its form has one, the mask `X_mask`; of those of
                `config.several` but the prompt not of each row but of each content, whose rows and places are `X_rows`,
                `X_places`; and `group` (B,), where there are adapters.
        """
        inputs = {m: (features.get(m), features.get(f"{m}_mask")) for m in self.config.modalities}
        if self.prompt is not None and prompt_ids is not None:
            inputs[self.prompt] = self.get_input_embeddings()(prompt_ids), prompt_mask
        tokens_BNTD = self.fusion.stand_in_NTD.new_zeros(len(present), *self.fusion.stand_in_NTD.shape)
        mask_BNT = torch.zeros(tokens_BNTD.shape[:3], dtype=torch.bool, device=present.device)
        for n, modality in enumerate(self.config.modalities):
            if modality in self.places:
                rows_C, places_C = features[f"{modality}_rows"], features[f"{modality}_places"]
                read_C = present[rows_C, n].nonzero()[:, 0]
                rows_C, places_C = rows_C[read_C], places_C[read_C]
            else:
                rows_C = read_C = present[:, n].nonzero()[:, 0]
                places_C = torch.zeros_like(rows_C)
            if len(rows_C):
                values, mask = (None if tensor is None else tensor[read_C] for tensor in inputs[modality])
                encoded, mask_CT = self.encoders[modality](values, mask)
                projected = self.projectors[modality](encoded)
                if modality in self.places:
                    projected = self.places[modality](projected, places_C)
                at_CT = places_C[:, None] * mask_CT.shape[1] + torch.arange(mask_CT.shape[1], device=places_C.device)
                mask_BNT[rows_C[:, None], n, at_CT] = mask_CT
                at = rows_C[:, None], torch.tensor(n), at_CT
                tokens_BNTD = tokens_BNTD.to(projected.dtype).index_put(at, projected)
        if self.adapters is not None and "group" in features:
            tokens_BNTD = self.adapters(tokens_BNTD, features["group"])
        return tokens_BNTD, mask_BNT

    def fuse(self, tokens_BNTD: Tensor, mask_BNT: Tensor) -> Tensor:
        """x_m (B, X, D) of what `encode` gives; at first of the size of the tokens that a pretrained model knows."""
        return self.soft_norm(self.to_llm(self.fusion(tokens_BNTD, mask_BNT)))

    @cached_property
    @torch.no_grad()
    def prompt_room(self) -> int | None:
        """How long a prompt may be for the language model to have positions for x_m, prompt and answer; None: any."""
        if (most := positions(self.config.llm_config)) is None:
            return None
        tokens_BNTD = torch.zeros_like(self.fusion.stand_in_NTD)[None]
        with torch.random.fork_rng(devices=[]):  # dropout would move the state that training goes on from
            x_m = self.fuse(tokens_BNTD, torch.ones_like(tokens_BNTD[..., 0], dtype=torch.bool))
        literal = sum(len(part) for part in self.config.template if isinstance(part, list))
        reads = self.output.reads_answers
        answer = self.output.opening + self.config.max_new_tokens if reads else self.output.positions
        return most - x_m.shape[1] - literal - answer

    def context(
        self,
        x_m: Tensor,
        prompt_ids: Tensor | None = None,
        prompt_mask: Tensor | None = None,
        column_ids: Tensor | None = None,
        column_mask: Tensor | None = None,
        x_m_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Soft tokens, then the prompt, or as the template says: embeddings (B, S, D) and mask (B, S), padded on the
        left.

        Args:
            column_ids: of `config.columns` (B, columns, P), with their mask.
            x_m_mask: bool (B, X), which soft tokens are read; None: all.
        """
        embed: Any = self.get_input_embeddings()
        all_real = torch.ones_like(x_m[..., 0], dtype=torch.bool)
        sequence, columns = list[tuple[Tensor, Tensor]](), self.config.columns
        for part in self.config.template or (SOFT, self.prompt):
            if part == SOFT:
                sequence.append((x_m, all_real if x_m_mask is None else x_m_mask))
            elif isinstance(part, list):
                ids_BP = torch.tensor(part, device=x_m.device).expand(x_m.shape[0], -1)
                sequence.append((embed(ids_BP), all_real[:, :1].expand_as(ids_BP)))
            elif part == self.prompt and prompt_ids is not None:
                assert prompt_mask is not None
                sequence.append((embed(prompt_ids), prompt_mask))
            elif part in columns:
                assert column_ids is not None and column_mask is not None
                n = columns.index(part)
                sequence.append((embed(column_ids[:, n]), column_mask[:, n]))
        if len(sequence) == 1 and x_m_mask is None:
            return sequence[0]
        embeddings = torch.cat([tokens.to(embed.weight.dtype) for tokens, _ in sequence], dim=1)
        mask = torch.cat([real for _, real in sequence], dim=1)
        # Padding may lie anywhere; this moves it to the front and keeps the order of the rest.
        places_S = torch.arange(mask.shape[1], device=mask.device)
        order = (places_S + mask.shape[1] * mask).argsort(dim=1)
        embeddings = embeddings.gather(1, order[..., None].expand_as(embeddings))
        return embeddings, mask.gather(1, order)

    def alone(
        self, tokens_BNTD: Tensor, mask_BNT: Tensor, prompt: PromptTokens
    ) -> tuple[Readings, tuple[Tensor, Tensor]]:
        """What the language model reads of each row and each modality it has, as if it had no other (and of all, where
        the fusion wants it), the prompt with its own, columns with all: which these are, embeddings (R, S, D) and mask
        (R, S)."""
        readings = Readings.of(mask_BNT.any(2), self.fusion.reads_whole)
        rows_R, mask_RNT = readings.rows_R, readings.masked(mask_BNT)
        prompt = prompt.of(rows_R, mask_RNT.any(2), self.config.modalities, self.prompt)
        x_m = self.fuse(tokens_BNTD[rows_R], mask_RNT)
        return readings, self.context(x_m, *prompt, self.fusion.soft_mask(mask_RNT))

    def read(self, embeddings_BSD: Tensor, mask_BS: Tensor, **options: Any) -> Any:
        """What the language model says of a padded sequence (B, S, D) with mask (B, S); where there is a head, its
        last hidden state is there, too.

        Positions count from the first real token of a row.
        """
        if self.packs and self.training and not mask_BS.all():
            return read_packed(self._said, self.get_output_embeddings(), embeddings_BSD, mask_BS, **options)
        length = embeddings_BSD.shape[1]
        if self.compiled is not None and self.training:
            embeddings_BSD, mask_BS = self.compiled.padded(embeddings_BSD, mask_BS)
        positions_BS = (mask_BS.long().cumsum(1) - 1).clamp(min=0)
        padded = {"inputs_embeds": embeddings_BSD, "attention_mask": mask_BS, "position_ids": positions_BS}
        said = self._said(**{"use_cache": False} | padded | options)
        if "last_hidden_state" in said:
            said["last_hidden_state"] = said.last_hidden_state[:, -length:]  # without what compiled layers were given
        return said

    def _said(self, **read: Any) -> Any:
        """The language model's own, see `read`."""
        is_also_read = self.head is not None and self.output.reads_answers
        with ExitStack() as stack:
            seen = stack.enter_context(_watched(self.llm.base_model)) if is_also_read else []
            said = self.llm(**read)
        if seen:
            said["last_hidden_state"] = seen[0]
        return said

    def forward(
        self,
        present: Tensor,
        labels: Tensor | None = None,
        prompt_ids: Tensor | None = None,
        prompt_mask: Tensor | None = None,
        shuffle: Tensor | None = None,
        **features: Tensor,
    ) -> ModelOutput:
        """Loss and logits of the answers.

        Args:
            present: bool (B, N), which of `config.modalities` each row has. The other tensors are a `Collator`'s.
            labels: the output's targets (B, ...). Some outputs (text) have no logits without them.
            shuffle: a permutation of rows for x_m, to see what the model makes of another row's.
        """
        tokens_BNTD, mask_BNT = self.encode(present, prompt_ids=prompt_ids, prompt_mask=prompt_mask, **features)
        prompt = PromptTokens(prompt_ids, prompt_mask, features.get("column_ids"), features.get("column_mask"))
        modalities = self.config.modalities
        output = ModelOutput(
            tokens=dict(zip(modalities, tokens_BNTD.unbind(1), strict=True)),
            masks=dict(zip(modalities, mask_BNT.unbind(1), strict=True)),
        )
        assert output.tokens is not None
        # What objectives see is what the fusion reads, so that no gradient of an encoder goes past it.
        tokens_BNTD = torch.stack(list(output.tokens.values()), dim=1)
        output["x_m"], output["x_m_mask"] = self.fuse(tokens_BNTD, mask_BNT), self.fusion.soft_mask(mask_BNT)
        if self.output.views:
            shown_BNTD, shown_BNT = _taken(shuffle, tokens_BNTD, mask_BNT)
            output["logits"] = self._of_views(shown_BNTD, shown_BNT, prompt)
        elif self.fusion.late or (self.training and any(objective.reads_alone for objective in self.objectives)):
            shown_BNTD, shown_BNT = _taken(shuffle, tokens_BNTD, mask_BNT)
            readings, sequence = self.alone(shown_BNTD, shown_BNT, prompt)
            said = self.output.logits(self, *sequence, None if labels is None else labels[readings.rows_R])
            of_NR = [readings.modality_R == n for n in range(len(modalities))]
            output["alone"] = {m: (readings.rows_R[r], said[r]) for m, r in zip(modalities, of_NR, strict=True)}
            if self.fusion.late:
                output["logits"] = readings.averaged(said)[readings.first_B]
        if output.logits is None:
            x_m, x_m_mask = _taken(shuffle, output.x_m, self.fusion.soft_mask(mask_BNT))
            output["logits"] = self.output.logits(self, *self.context(x_m, *prompt, x_m_mask), labels)
        if not self.training and (beside := self._beside(present, features)) is not None:
            assert output.logits is not None
            output["logits"] = with_linear(output.logits, *_taken(shuffle, *beside))
        if labels is not None:
            batch = {"present": present, "labels": labels, "prompt_ids": prompt_ids, "prompt_mask": prompt_mask}
            self._add_loss(output, {name: x for name, x in {**batch, **features}.items() if x is not None})
        return output

    def _beside(self, present: Tensor, features: Mapping[str, Tensor]) -> tuple[Tensor, Tensor] | None:
        """What the linear model says of each row, and its share in the answer; None: there is none."""
        if self.linear is None or not self.linear.share.any():
            return None
        of = dict(zip(self.config.modalities, present.unbind(1), strict=True))
        return self.linear(*self.linear.pooled(of, features))

    def _of_views(self, tokens_BNTD: Tensor, mask_BNT: Tensor, prompt: PromptTokens) -> Tensor:
        """The logits of each row's views (B, V, ...): see `Output.loss`."""
        views = Views.of(self.output.views, self.config.modalities, mask_BNT.any(2))
        rows_R, shown_RN = views.rows_R, views.shown_RN
        mask_RNT = mask_BNT[rows_R] & shown_RN[..., None]
        prompt = prompt.of(rows_R, shown_RN, self.config.modalities, self.prompt)
        sequence, readings = self._sequence(tokens_BNTD[rows_R], mask_RNT, prompt)
        said = self.output.logits(self, *sequence, None)
        if readings is not None:
            said = readings.averaged(said)[readings.first_B]
        return views.spread(said, len(mask_BNT), len(self.output.views))

    def _sequence(
        self, tokens_BNTD: Tensor, mask_BNT: Tensor, prompt: PromptTokens
    ) -> tuple[tuple[Tensor, Tensor], Readings | None]:
        """What the language model reads of each row, or of each reading where the fusion is late."""
        if self.fusion.late:
            readings, sequence = self.alone(tokens_BNTD, mask_BNT, prompt)
            return sequence, readings
        x_m = self.fuse(tokens_BNTD, mask_BNT)
        return self.context(x_m, *prompt, self.fusion.soft_mask(mask_BNT)), None

    def _add_loss(self, output: ModelOutput, batch: dict[str, Tensor]) -> None:
        """`loss`, and in training `losses`. In the model's own call, so that processes share an objective's gradients.

        Raises:
            ValueError: two objectives use one name.
        """
        assert output.logits is not None
        if not self.training or not len(self.objectives):
            output["loss"] = self.output.loss(output.logits, batch["labels"])
            return
        named: dict[str, Tensor] = {}
        total = output.logits.new_zeros((), dtype=torch.float32)
        for objective in self.objectives:
            assert isinstance(objective, Objective)
            losses = objective(output, batch)
            if twice := sorted(named.keys() & losses):
                raise ValueError(f"two objectives have a loss called {twice[0]!r}: call one otherwise")
            named |= losses
            total = total + objective.weight * sum(losses.values())
        output["losses"], output["loss"] = named, total

    def answer(
        self, batch: dict[str, Tensor], tokenizer: PreTrainedTokenizerBase, shuffle: Tensor | None = None
    ) -> list[Any]:
        """One answer for each row of a `Collator`'s batch (its labels are not looked at)."""
        return [answer.prediction for answer in self.scored_answers(batch, tokenizer, shuffle)]

    @torch.inference_mode()
    def scored_answers(
        self, batch: dict[str, Tensor], tokenizer: PreTrainedTokenizerBase, shuffle: Tensor | None = None
    ) -> list[Answer]:
        """The same, with their probabilities."""
        asked, readings = self._asked(batch, tokenizer, shuffle)
        answers = self.output.scored_answers(asked)
        return answers if readings is None else [answers[n] for n in readings.first_B.tolist()]

    @torch.inference_mode()
    def loss_and_answers(
        self, batch: dict[str, Tensor], tokenizer: PreTrainedTokenizerBase
    ) -> tuple[Tensor, list[Answer]]:
        """The output's loss of a `Collator`'s batch, and `scored_answers`; all that both need is worked out once."""
        if self.output.views:  # of which the loss is another
            given = {name: tensor.to(self.device) for name, tensor in batch.items() if name != "seeds"}
            return self(**given).loss, self.scored_answers(batch, tokenizer)
        asked, readings = self._asked(batch, tokenizer)
        labels = batch["labels"].to(self.device)
        if readings is None:
            logits, answers = self.output.said(asked, labels)
        else:
            logits, answers = self.output.said(asked, labels[readings.rows_R])
            logits, answers = logits[readings.first_B], [answers[n] for n in readings.first_B.tolist()]
        return self.output.loss(logits, labels), answers

    @torch.inference_mode()
    def pooled_x_m(self, batch: dict[str, Tensor]) -> Tensor:
        """Where the rows of a `Collator`'s batch lie: the mean of the soft tokens x_m of each (B, D), in float32."""
        given = {name: tensor.to(self.device) for name, tensor in batch.items() if name not in ("labels", "seeds")}
        tokens_BNTD, mask_BNT = self.encode(**given)
        x_m, soft_BX = self.fuse(tokens_BNTD, mask_BNT).float(), self.fusion.soft_mask(mask_BNT)
        read_BX1 = (x_m.new_ones(x_m.shape[:2]) if soft_BX is None else soft_BX.to(x_m.dtype))[..., None]
        return (x_m * read_BX1).sum(1) / read_BX1.sum(1).clamp(min=1)

    @torch.inference_mode()
    def surprises(
        self,
        batch: dict[str, Tensor],
        tokenizer: PreTrainedTokenizerBase,
        labels: Sequence[str],
        temperatures: Sequence[float],
    ) -> Tensor:
        """How unlikely the labels of a batch are by each temperature (G, B): `Output.surprises`."""
        asked, readings = self._asked(batch, tokenizer)
        if readings is None:
            return self.output.surprises(asked, labels, temperatures)
        read = [labels[n] for n in readings.rows_R.tolist()]
        return self.output.surprises(asked, read, temperatures)[..., readings.first_B]

    def _asked(
        self, batch: dict[str, Tensor], tokenizer: PreTrainedTokenizerBase, shuffle: Tensor | None = None
    ) -> tuple[Asked, Readings | None]:
        """What answers a batch: of each row, or of each reading."""
        seeds = batch.get("seeds")
        batch = {name: tensor.to(self.device) for name, tensor in batch.items() if name not in ("labels", "seeds")}
        tokens_BNTD, mask_BNT = _taken(shuffle, *self.encode(**batch))
        prompt = PromptTokens(*map(batch.get, ("prompt_ids", "prompt_mask", "column_ids", "column_mask")))
        sequence, readings = self._sequence(tokens_BNTD, mask_BNT, prompt)
        given = dict(zip(self.config.modalities, batch["present"].unbind(1), strict=True))
        beside = self._beside(batch["present"], batch)
        if beside is not None:
            beside = _taken(None if readings is None else readings.rows_R, *_taken(shuffle, *beside))
        if readings is None:
            return Asked(sampled(self, seeds), *sequence, tokenizer, beside, present=given), None
        model = sampled(AveragedModel(self, readings), None if seeds is None else seeds[readings.rows_R.cpu()])
        return Asked(model, *sequence, tokenizer, beside), readings


@contextmanager
def _watched(base: nn.Module) -> Iterator[list[Tensor]]:
    """The last hidden states that a language model without its head has while this lasts. `output_hidden_states` would
    put hooks into each layer, which break what is compiled of them."""
    seen: list[Tensor] = []
    hook = base.register_forward_hook(lambda _module, _inputs, said: seen.append(said[0]))
    try:
        yield seen
    finally:
        hook.remove()


def _taken(rows: Tensor | None, *tensors: Any) -> tuple[Any, ...]:
    """The tensors, or None, with their rows in another order; None: as they are."""
    return tensors if rows is None else tuple(None if tensor is None else tensor[rows] for tensor in tensors)


def _make_encoder(config: FusionConfig, modality: str, shape: ModelShape) -> Encoder:
    source = FeatureShape(**config.inputs[modality])
    if config.encoder_class(modality).reads_prompt:
        source = replace(source, width=config.llm_width)
    choice, facts = ENCODERS.choose(config.encoders[modality], source.form), config.pretrained.get(modality)
    return ENCODERS.make(choice, source, shape, scope=source.form, **({} if facts is None else {"facts": facts}))


AutoModel.register(FusionConfig, FusionModel, exist_ok=True)
