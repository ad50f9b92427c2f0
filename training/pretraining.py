"""Encoders learn from rows without labels, before the models are trained that start from them: what is hidden of each
input has to be told from the rest of it, and what a row has beside it has to be found among other rows.

Shapes: B rows, N modalities, T tokens, D width, S places of an input, K hidden ones that are told, P values of a place.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.catalog import OBJECTIVES
from training.collator import Collator, make_collator
from training.data import SampleDataset
from training.descent import train
from training.device import chosen_device
from training.family import Choice
from training.layers import CrossAttention, positions
from training.model import FusionModel
from training.model_config import ModelOutput
from training.pretraining_settings import READS_PROMPT, TOLD, PretrainingSettings, learning
from training.settings import LlmSettings, complete
from training.train import TrainingTask, augmenters, new_model
from training.trainer import even_batches

_MOST_TOLD = 64  # places of an input: a long one has thousands
_FRAMES = 4  # of a place
_BATCH = 64  # rows that are measured at once


@dataclass(frozen=True)
class Pretrained:
    weights: dict[str, Tensor]  # of encoders and projectors, by their names in `FusionModel`
    before: dict[str, float]  # loss of the validation rows by name: contrastive_*, masked_*
    after: dict[str, float]


def pretrain(
    task: TrainingTask,
    rows: SampleDataset,
    settings: PretrainingSettings,
    log: Callable[[str], None] = print,
    checkpoint: Path | None = None,
) -> Pretrained:
    """Trains the encoders, and what projects their tokens, of the model that the task trains.

    Args:
        task: its rows, labels and language model decide nothing here, but for what encoders take over before the first
            step (`Encoder.fit`).
        rows: what is learned from, labelled or not.
        checkpoint: a file, from which a pretraining of the same goes on that was killed (`training.descent`).

    Raises:
        ValueError: no row has what could be learned from, or the loss became no number.
    """
    read = {m: choice for m, choice in task.model.encoders.items() if m in task.modalities}
    model = complete(replace(task.model, encoders=read), {m: task.features.forms[m] for m in task.modalities})
    learned = learning(model, task.features.forms)
    modalities = [m for m in learned if m in task.modalities and m in rows.modalities]
    with torch.random.fork_rng(devices=[]):
        network = new_model(_light(replace(task, model=model), learned))
        torch.manual_seed(settings.seed)
        learner = Learner(network, settings, modalities, task)
        if not learner.told and (len(modalities) < 2 or settings.contrastive == 0):
            raise ValueError(f"pretraining: no row has what could be learned from ({', '.join(learned) or 'nothing'})")
        device: Any = chosen_device()
        learner.to(device)
        network.to(device)
        plain = make_collator(network, task.tokenizer, task.features)
        augmented = replace(plain, augment=augmenters(task.training.augmentation, task.features, task.noise))
        before = learner.measured(task.validation, plain)
        batches = max(1, -(-len(rows) // settings.batch_size))

        def loss(numbers: Tensor, before: int) -> Tensor:
            batch = augmented([rows[before // batches, n] for n in numbers.tolist()])
            losses = learner(batch, torch.Generator().manual_seed(settings.seed * 1_000_003 + before + 1))
            return torch.stack([*losses.values()]).sum()

        steps, learning_rate = max(1, round(batches * settings.epochs)), settings.learning_rate
        train(learner, loss, len(rows), steps, log, settings.seed, settings.batch_size, learning_rate, checkpoint)
        after = learner.measured(task.validation, plain)
        network.cpu()
    weights = learner.learned(network)
    if not all(bool(weight.isfinite().all()) for weight in weights.values()):
        rate = settings.learning_rate
        raise ValueError(f"pretraining: the loss became no number; lower pretraining.learning_rate (it is {rate})")
    return Pretrained(weights, before, after)


def _light(task: TrainingTask, learned: list[str]) -> TrainingTask:
    """With a language model only where an encoder reads its embeddings, and no objectives."""
    model, training = task.model, replace(task.training, objectives=(Choice("answer"),))
    if not any(model.encoders[m].kind == READS_PROMPT for m in learned):
        model = replace(model, llm=LlmSettings(), prompt=None)
    return replace(task, model=model, training=training)


class Learner(nn.Module):
    """The encoders of these modalities with their projectors, and what tells hidden places and finds rows."""

    def __init__(
        self, network: FusionModel, settings: PretrainingSettings, modalities: list[str], task: TrainingTask
    ) -> None:
        super().__init__()
        self.settings, self.modalities = settings, modalities
        self._network = [network]  # in a list: the rest of it is no part of this module
        self.encoders = nn.ModuleDict({m: network.encoders[m] for m in modalities})
        self.projectors = nn.ModuleDict({m: network.projectors[m] for m in modalities})
        config, inputs = network.config, network.config.inputs
        forms = {m: inputs[m]["form"] for m in modalities}
        # Several contents of a row have their tokens side by side, which tell no single one of them.
        self.told = [m for m in modalities if settings.masked > 0 and forms[m] in TOLD and m not in config.several]
        self.forms = forms | ({config.prompt: "ids"} if config.prompt in forms else {})
        self.tellers = nn.ModuleDict({m: _Teller(config.width, config.heads, self._values(m)) for m in self.told})
        self.contrast: nn.Module | None = None
        if settings.contrastive > 0 and len(modalities) > 1:
            choice = OBJECTIVES.choose({"kind": "contrastive", "weight": settings.contrastive})
            self.contrast = OBJECTIVES.make(choice, config, task.training)

    def _values(self, modality: str) -> int:
        """Of a place; of ids: how many there are."""
        network, source = self._network[0], self._network[0].config.inputs[modality]
        if modality == network.prompt:
            embeddings: Any = network.get_input_embeddings()
            return int(embeddings.num_embeddings)
        if self.forms[modality] == "grid":
            return int(source["width"]) * _patch(source["size"]) ** 2
        return int(source["width"]) * (_FRAMES if self.forms[modality] == "frames" else 1)

    def forward(self, batch: Mapping[str, Tensor], random: torch.Generator) -> dict[str, Tensor]:
        """Losses by name, each times its weight."""
        device = next(self.parameters()).device
        batch = {name: tensor.to(device) for name, tensor in batch.items()}
        found = self._masked(batch, random) if self.told else {}
        if self.contrast is not None:
            tokens, masks = self._tokens(batch, self.modalities)
            alike = self.contrast(ModelOutput(tokens=tokens, masks=masks), batch)
            found |= {name: self.settings.contrastive * loss for name, loss in alike.items()}
        return found

    def _masked(self, batch: Mapping[str, Tensor], random: torch.Generator) -> dict[str, Tensor]:
        """What is said of hidden places. The rest is read in a pass of its own: rows are found by whole inputs."""
        network, shown, hidden = self._network[0], dict(batch), dict[str, Hidden]()
        for n, modality in enumerate(network.config.modalities):
            if modality in self.told:
                is_prompt = modality == network.prompt
                name, masked = ("prompt_ids", "prompt_mask") if is_prompt else (modality, f"{modality}_mask")
                read = self.forms[modality], batch[name], batch.get(masked), batch["present"][:, n]
                hidden[modality] = hide(*read, self.settings.masked, random)
                shown[name] = hidden[modality].values
        tokens, masks = self._tokens(shown, self.told)
        losses = {}
        for modality, found in hidden.items():
            rows_R = found.told_BK.any(1).nonzero()[:, 0]
            losses[f"masked_{modality}"] = tokens[modality].sum() * 0
            if len(rows_R):
                said = self.tellers[modality](tokens[modality][rows_R], masks[modality][rows_R], found.at_BK[rows_R])
                losses[f"masked_{modality}"] = found.loss(said, rows_R)
        return losses

    def _tokens(
        self, batch: Mapping[str, Tensor], modalities: Sequence[str]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Modality -> its projected tokens (B, T, D), and their mask; others are not read."""
        network = self._network[0]
        is_read = torch.tensor([m in modalities for m in network.config.modalities], device=batch["present"].device)
        tokens_BNTD, mask_BNT = network.encode(**{**batch, "present": batch["present"] & is_read})
        names = network.config.modalities
        tokens = dict(zip(names, tokens_BNTD.unbind(1), strict=True))
        masks = dict(zip(names, mask_BNT.unbind(1), strict=True))
        return {m: tokens[m] for m in modalities}, {m: masks[m] for m in modalities}

    @torch.no_grad()
    def measured(self, rows: SampleDataset, collator: Collator) -> dict[str, float]:
        """The mean of each loss over batches of rows; of none nothing is known."""
        if not len(rows):
            return {}
        was, sums, count = self.training, dict[str, float](), 0
        self.eval()
        for batch in even_batches(rows, collator, _BATCH):
            count += 1
            for name, loss in self(batch, torch.Generator().manual_seed(count)).items():
                sums[name] = sums.get(name, 0.0) + float(loss)
        self.train(was)
        return {name: value / count for name, value in sums.items()}

    def learned(self, network: FusionModel) -> dict[str, Tensor]:
        """What was trained, and the buffers beside it; not what a pretrained encoder has been given frozen."""
        names = tuple(f"{part}.{m}." for part in ("encoders", "projectors") for m in self.modalities)
        frozen = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
        state = network.state_dict().items()
        return {n: t.detach().clone() for n, t in state if n.startswith(names) and n not in frozen}


class _Teller(nn.Module):
    """What stands at places of an input, by the tokens that an encoder made of the rest (B, K, P)."""

    def __init__(self, width: int, heads: int, values: int) -> None:
        super().__init__()
        self.width = width
        self.read = CrossAttention(width, heads, 0.0)
        self.say = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, values)
        )

    def forward(self, tokens_BTD: Tensor, mask_BT: Tensor, at_BK: Tensor) -> Tensor:
        table_SD = positions(int(at_BK.max()) + 1, self.width, tokens_BTD.device).to(tokens_BTD.dtype)
        asked_BKD = table_SD[at_BK]
        said: Tensor = self.say(asked_BKD + self.read(asked_BKD, tokens_BTD, mask_BT))
        return said


class Hidden(NamedTuple):
    """An input of which places are hidden."""

    values: Tensor  # as they are shown: pixels and frames are their mean there, ids are others of the batch
    at_BK: Tensor  # the places that are to be told, counted from the first real one
    told_BK: Tensor  # bool, which of these a row has
    wanted: Tensor  # what stands there: standardised values (B, K, P), or ids (B, K)

    def loss(self, said_RKP: Tensor, rows_R: Tensor) -> Tensor:
        """Mean square error of values, cross entropy of ids."""
        told_RK, wanted = self.told_BK[rows_R], self.wanted[rows_R]
        if wanted.is_floating_point():
            return functional.mse_loss(said_RKP[told_RK], wanted[told_RK])
        return functional.cross_entropy(said_RKP[told_RK].float(), wanted[told_RK])


def hide(
    form: str, values: Tensor, mask: Tensor | None, present_B: Tensor, share: float, random: torch.Generator
) -> Hidden:
    """Hides a share of the places of each row that is there, one at least and never all; of a single place none.

    A place is a square of pixels, four frames, or an id.
    """
    if form == "grid":
        places_BSP = _patches(values)
        real_BS = values.new_ones(places_BSP.shape[:2], dtype=torch.bool)
    elif form == "frames":
        assert mask is not None
        whole = values.shape[1] // _FRAMES * _FRAMES  # a place that is not whole is shown as it is
        places_BSP = values[:, :whole].unflatten(1, (-1, _FRAMES)).flatten(2)
        real_BS = mask[:, :whole].unflatten(1, (-1, _FRAMES)).all(2)
    else:
        assert mask is not None
        places_BSP, real_BS = values[..., None], mask
    real_BS = real_BS & present_B[:, None]
    draws_BS = torch.rand(real_BS.shape, generator=random).to(values.device).masked_fill(~real_BS, -1.0)
    order_BS = draws_BS.argsort(1, descending=True)
    count_B = real_BS.sum(1)
    hidden_B = (count_B * share).round().clamp(min=1).minimum(count_B - 1).clamp(min=0)
    ranks_BS = order_BS.argsort(1)
    hidden_BS = ranks_BS < hidden_B[:, None]
    most = max(1, min(_MOST_TOLD, int(hidden_B.max()) if len(hidden_B) else 1))
    at_BK = order_BS[:, :most]
    told_BK = torch.arange(at_BK.shape[1], device=values.device) < hidden_B[:, None]
    wanted = places_BSP.gather(1, at_BK[..., None].expand(-1, -1, places_BSP.shape[2]))
    if form in ("grid", "frames"):
        known = places_BSP[real_BS] if real_BS.any() else torch.zeros_like(places_BSP)
        mean, deviation = known.mean(), known.std(correction=0).clamp(min=1e-6)
        wanted = (wanted - mean) / deviation
        return Hidden(_covered(form, values, hidden_BS, mean), at_BK, told_BK, wanted)
    pool = values[real_BS]
    others = torch.randint(max(1, len(pool)), values.shape, generator=random).to(values.device)
    shown = torch.where(hidden_BS, pool[others], values) if len(pool) else values
    number_BS = (real_BS.cumsum(1) - 1).clamp(min=0)  # a prompt is padded on the left
    return Hidden(shown, number_BS.gather(1, at_BK), told_BK, wanted[..., 0])


def _patch(size: int) -> int:
    """Pixels of a side of a place."""
    return max(4, int(size) // 8)


def _patches(pixels_BCHW: Tensor) -> Tensor:
    """(B, S, P), row by row; what lies beyond the edge is zero."""
    side = _patch(pixels_BCHW.shape[2])
    height, width = pixels_BCHW.shape[2:]
    padded = functional.pad(pixels_BCHW, (0, -width % side, 0, -height % side))
    return functional.unfold(padded, side, stride=side).transpose(1, 2)


def _covered(form: str, values: Tensor, hidden_BS: Tensor, fill: Tensor) -> Tensor:
    if form == "frames":
        hidden_BF = hidden_BS.repeat_interleave(_FRAMES, 1)
        rest = hidden_BF.new_zeros(len(values), values.shape[1] - hidden_BF.shape[1])
        return torch.where(torch.cat([hidden_BF, rest], 1)[..., None], fill, values)
    side, (height, width) = _patch(values.shape[2]), values.shape[2:]
    cells = hidden_BS.unflatten(1, (-(-height // side), -(-width // side)))
    pixels = cells.repeat_interleave(side, 1).repeat_interleave(side, 2)[:, :height, :width]
    return torch.where(pixels[:, None], fill, values)
