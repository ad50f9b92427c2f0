"""How well the text of a sample fits its picture or recording: the cosine of where a model such as CLIP or CLAP places
the two (Radford et al. 2021; Wu et al. 2023)."""

from dataclasses import dataclass

from training.filters.base import RangeFilter, RangeOptions
from training.validation import check


@dataclass(frozen=True, kw_only=True)
class SimilarityOptions(RangeOptions):
    model: str = ""  # has to be given: a Hugging Face name, or a local folder of the same form


class SimilarityFilter(RangeFilter):
    """From -1 to 1; of CLIP ViT-B/32 LAION kept pairs from 0.28 on. It judges samples that have both; of several
    pictures or recordings the mean counts. Samples are judged when they are made (`assets.similarity`), each content is
    placed once."""

    version = 1
    Options = SimilarityOptions
    packages = ("transformers", "torch", "torchvision", "soxr")
    located = ("model",)

    def __init__(self, options: SimilarityOptions) -> None:
        super().__init__(options)
        check(options.model != "", "similarity: model", options.model, "a Hugging Face name, or a local folder")
