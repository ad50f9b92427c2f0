"""Rows that a language model reads in training one after the other, in a few sequences, instead of each padded to the
longest. Positions begin anew with each row, by which transformers' own masks tell rows apart: none sees another.

Shapes: B rows, S positions of a padded row, P sequences, L positions of each, D width.
"""

import heapq
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

LENGTH = 256  # positions of a sequence, about: more are more work for attention, fewer leave more padding
_MULTIPLE = 16  # compiled layers are compiled for few lengths
_TRIED = 10  # tokens of the rows that tell whether a model keeps them apart
_LEAK = 1e-3  # of float32, as a share of what other tokens change: rounding is less, and another row's tokens more


def read_packed(say: Callable[..., Any], head: Any, embeddings_BSD: Tensor, mask_BS: Tensor, **options: Any) -> Any:
    """What `FusionModel.read` gives; of positions that are padding, anything.

    Args:
        say: the language model.
        head: its output embeddings, where `logits_to_keep` is among the options.
    """
    at_BS, positions_PL = packed(mask_BS, LENGTH)
    sequences = embeddings_BSD.new_zeros(positions_PL.numel(), embeddings_BSD.shape[2])
    sequences = sequences.index_copy(0, at_BS[mask_BS], embeddings_BSD[mask_BS]).unflatten(0, positions_PL.shape)
    read = {"inputs_embeds": sequences, "position_ids": positions_PL, "use_cache": False}
    kept = options.pop("logits_to_keep", 0)
    real_BA, real_K = mask_BS[:, -kept:], at_BS[:, -kept:][mask_BS[:, -kept:]]
    with _reading(head, real_K) if kept else nullcontext():
        said = say(**read, **options)
    if "last_hidden_state" in said:
        said["last_hidden_state"] = _taken(said.last_hidden_state, at_BS)
    if kept:
        logits_KV = said.logits[0]
        logits_BAV = logits_KV.new_zeros(*real_BA.shape, logits_KV.shape[1])
        said["logits"] = logits_BAV.index_put((real_BA,), logits_KV)
    return said


@contextmanager
def _reading(head: Any, places_K: Tensor) -> Iterator[None]:
    """A head that reads these places of the flattened sequences: no option of a model says which of each sequence."""
    hook = head.register_forward_pre_hook(lambda _, read: (_taken(read[0], places_K[None]),))
    try:
        yield
    finally:
        hook.remove()


def packed(mask_BS: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Where each position of padded rows lies in the flattened sequences (B, S), 0 where it is padding; and the
    positions of the sequences (P, L), which begin with each row. A row is never cut; each place that no row takes is a
    row of its own, at the end of a sequence.

    Args:
        length: of a sequence, about; it is that of the longest row where that is more.
    """
    lengths = mask_BS.sum(1).tolist()
    sequences = max(1, sum(lengths) // max(length, *lengths))
    filled = [(0, n) for n in range(sequences)]
    places = [(0, 0)] * len(lengths)
    for row in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        start, n = filled[0]  # the longest row first, each into the sequence that is emptiest
        places[row] = n, start
        heapq.heapreplace(filled, (start + lengths[row], n))
    longest = -(-max(filled)[0] // _MULTIPLE) * _MULTIPLE
    starts_B = torch.tensor([n * longest + start for n, start in places], device=mask_BS.device)
    position_BS = mask_BS.cumsum(1) - 1
    at_BS = torch.where(mask_BS, starts_B[:, None] + position_BS, 0)
    positions = at_BS.new_zeros(sequences * longest).index_copy(0, at_BS[mask_BS], position_BS[mask_BS])
    return at_BS, positions.unflatten(0, (sequences, longest))


def _taken(states_PLD: Tensor, at_BX: Tensor) -> Tensor:
    """The states (B, X, D) of these places."""
    return states_PLD.flatten(0, 1).index_select(0, at_BX.flatten()).unflatten(0, at_BX.shape)


@torch.no_grad()
def keeps_rows_apart(llm: Any) -> bool:
    """Whether a model says of a row that is packed behind another what it says of that row alone; tried out, as no
    configuration tells."""
    was_training, embed = llm.training, llm.get_input_embeddings()
    draw = torch.Generator().manual_seed(0)  # torch's global one decides what comes after
    ids = torch.randint(embed.weight.shape[0], (3, _TRIED), generator=draw).to(embed.weight.device)
    rows_3TD, mask_2T = embed(ids), torch.ones_like(ids[:2], dtype=torch.bool)
    llm.eval()
    alone = llm(inputs_embeds=rows_3TD[2:], position_ids=torch.arange(_TRIED)[None].to(ids), use_cache=False)
    options, head = {"logits_to_keep": _TRIED} if "logits" in alone else {}, llm.get_output_embeddings()
    first, second = (read_packed(llm, head, rows_3TD[[n, 2]], mask_2T, **options)[0] for n in (0, 1))
    llm.train(was_training)
    moved = (first[0] - second[0]).abs().max()
    return not any(bool((said[1] - alone[0][0]).abs().max() > _LEAK * moved) for said in (first, second))


def unpackable(name: str) -> str:
    """What is wrong with a model that does not keep rows apart."""
    return (
        f"training.packing: the language model {name!r} does not keep rows apart that follow one another in one "
        "sequence (what it says of one would depend on those before it): set it to false"
    )
