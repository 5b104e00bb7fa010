"""The numbers of a fusion stage, which mixes image and question before the decoder sees either."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FusionSpec:
    """LLaVA-Mini's pre-fusion (arXiv 2501.03895): causal layers of the decoder's kind over image and prompt.

    They run once, over all features of the image followed by the whole prompt. What they make of the last
    `image_tokens` features takes the image's place in the prompt, and what they make of the text takes the text's.

    Attributes:
        num_hidden_layers: layers, each shaped like one of the decoder.
        image_tokens: positions of an image, or of a frame of a video, in the fused prompt.
    """

    num_hidden_layers: int
    image_tokens: int
