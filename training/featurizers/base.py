"""What featurizers give."""

from dataclasses import dataclass


@dataclass(frozen=True)
class FeatureShape:
    """What an encoder must know of its input before it sees any.

    form: grid    pictures (B, width, size, size)
          frames  sequences of vectors (B, F, width) with a mask (B, F)
          ids     token ids (B, S) below `width`, with a mask (B, S)
    """

    form: str
    width: int  # channels of a picture, features of a frame, size of the vocabulary
    size: int = 0  # height and width of a picture, in pixels
