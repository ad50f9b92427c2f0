"""Late fusion: each modality is answered by itself, and the answers' logits are averaged."""

from training.fusions.interleaved import InterleavedFusion


class LogitFusion(InterleavedFusion):
    """The language model reads each modality of a row as if the row had no other (the prompt goes with the modality
    that it is of), and what it says is averaged over those that are there: M(x_m) = mean over n of M(e_n)."""

    late = True
