"""Training rows mixed with one another, which makes new rows of few: vectors (FuseMix, Vouitsis et al. 2023,
"Data-Efficient Multimodal Fusion on a Single GPU"), pictures and spectrograms (MixUp, Zhang et al. 2018), or pictures
of which a box is another one's (CutMix, Yun et al. 2019).

x = l x_i + (1 - l) x_j with the same l and the same pair in every modality, so that what belongs together still does;
and the loss is l L(y_i) + (1 - l) L(y_j), for a class the same as that of the mixed label. Where a box is cut, l is the
share of the picture that is left, and all else that the rows have is mixed by it.

Shapes: B rows, K masks of a row side by side.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from training.validation import check

if TYPE_CHECKING:
    from torch import Tensor

    from training.features import FeatureSettings
    from training.outputs.base import Output

VECTORS = ("vectors",)
MIXABLE = (*VECTORS, "grid", "frames")  # forms of features


def can_mix(
    modalities: Sequence[str],
    features: "FeatureSettings",
    output: "Output",
    columns: Sequence[str],
    several: Collection[str] = (),
) -> bool:
    """Whether rows may be mixed without anybody having asked for it; see `check_mixing`."""
    return output.has_labels and not any(_obstacles(VECTORS, modalities, features, output, columns, several))


def check_mixing(
    alpha: float,
    modalities: Sequence[str],
    features: "FeatureSettings",
    output: "Output",
    columns: Sequence[str] = (),
    several: Collection[str] = (),
    cutmix: float = 0.0,
) -> None:
    """Raises ValueError where rows of such features, or answers of such an output, cannot be mixed.

    Args:
        columns: that the prompt names.
        several: the modalities of which a row may have several contents.
    """
    for obstacle in _obstacles(MIXABLE, modalities, features, output, columns, several):
        check(alpha == 0, "training.mixing", alpha, f"0 {obstacle}")
        check(cutmix == 0, "training.cutmix", cutmix, f"0 {obstacle}")
    has_pictures = any(features.forms[modality] == "grid" for modality in modalities)
    check(cutmix == 0 or has_pictures, "training.cutmix", cutmix, "0 where no modality is read as pictures")


def _obstacles(
    forms: Collection[str],
    modalities: Sequence[str],
    features: "FeatureSettings",
    output: "Output",
    columns: Sequence[str],
    several: Collection[str],
) -> Iterator[str]:
    """Beside what rows cannot be mixed, and why."""
    if several:
        yield f"beside align.several ({', '.join(several)}): rows with different numbers of contents cannot be mixed"
    if columns:
        yield "beside columns in model.prompt: texts cannot be mixed"
    for modality in modalities:
        if (form := features.forms[modality]) not in forms or not features.featurizer(modality).mixes:
            mixed = "vectors, pixels and our own spectrograms can be mixed, vectors"
            vectors = f"features.{modality}: {{kind: embedding, model: ...}} or {{kind: vector, width: ...}}"
            yield f"beside features.{modality} of the form {form}: {mixed} as of {vectors}"
    if output.reads_answers or output.answers_with:
        yield "where answers are written: there is none between two texts; model.output: class, for one, has some"


def mixed(
    batch: "dict[str, Tensor]",
    forms: Mapping[str, str],
    alpha: float,
    random: np.random.Generator,
    cutmix: float = 0.0,
) -> "dict[str, Tensor]":
    """The batch of a `Collator` with each row mixed with another one.

    What a row keeps of itself is drawn once for the batch: `mixing`, from Beta(alpha, alpha), or by the box that is cut
    out of pictures, from Beta(cutmix, cutmix); where both are asked for, one of the two is drawn. Its partner has the
    same modalities, vectors in the same number, and its label is `other_labels`. A row that is alone in that stays as
    it is. Of two spectrograms the mean is as long as the longer one.

    Args:
        forms: modality -> form, of those that the batch has.
    """
    import torch

    masks = [batch["present"], *(batch[f"{m}_mask"] for m, form in forms.items() if form in VECTORS)]
    partner_B = torch.from_numpy(partners(torch.cat(masks, dim=1).numpy(), random))
    box = None
    if cutmix > 0 and (alpha == 0 or random.random() < 0.5):
        box, kept = _box(next(batch[m] for m, form in forms.items() if form == "grid"), cutmix, random)
    else:
        kept = random.beta(alpha, alpha)
    made = {}
    for modality, form in forms.items():
        own, other = batch[modality], batch[modality][partner_B]
        if form == "grid" and box is not None:
            left, top, right, bottom = box
            made[modality] = own.clone()
            made[modality][..., top:bottom, left:right] = other[..., top:bottom, left:right]
        else:
            made[modality] = kept * own + (1 - kept) * other
        if form == "frames":
            made[f"{modality}_mask"] = batch[f"{modality}_mask"] | batch[f"{modality}_mask"][partner_B]
    others = {f"other_{name}": batch[name][partner_B] for name in ("labels", "column") if name in batch}
    return batch | made | {"mixing": torch.tensor(kept).float()} | others


def _box(pictures_BCHW: "Tensor", alpha: float, random: np.random.Generator) -> tuple[tuple[int, int, int, int], float]:
    """Left, top, right and bottom of what is cut out, and which share of the picture is left."""
    import torch
    from torchvision.transforms import v2

    with torch.random.fork_rng(devices=[]):  # it draws from torch's global generator only
        torch.manual_seed(int(random.integers(2**62)))
        drawn = v2.CutMix(alpha=alpha).make_params([pictures_BCHW])
    return drawn["box"], drawn["lam_adjusted"]


def partners(masks_BK: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """For each row the number of one with equal masks (B,), each of which is taken once; it may be the row itself."""
    kinds_B = np.unique(masks_BK, axis=0, return_inverse=True)[1].reshape(-1)
    partner_B = np.empty(len(masks_BK), np.int64)
    for kind in range(kinds_B.max() + 1):
        (alike,) = np.nonzero(kinds_B == kind)
        partner_B[alike] = random.permutation(alike)
    return partner_B
