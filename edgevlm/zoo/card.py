"""The model card of `nano-fastvlm`: what it is, what it was trained on, what that cost, and what it scores."""

import os

from edgevlm.zoo.evaluate import Score, table
from edgevlm.zoo.trainer import Settings

TARGET_ALL, TARGET_EACH = 0.90, 0.80


def model_card(settings: Settings, seconds: float, scores: list[Score]) -> str:
    """Markdown with true figures: `seconds` of training, `scores` of the test split."""
    counts = ", ".join(f"{count:,} in stage `{stage}`" for stage, count in settings.images.items())
    spec, decoder, items = settings.spec, settings.spec.decoder, scores[-1].items
    return f"""---
license: apache-2.0
library_name: edgevlm
pipeline_tag: image-text-to-text
---

# nano-fastvlm

A FastVLM small enough to ship with a test suite: a FastViTHD-shaped encoder (widths {spec.encoder.dims}, depths
{spec.encoder.depths}, {spec.image_size} pixels to {spec.grid**2} visual tokens), the two-layer projector, and a
Qwen2-shaped decoder ({decoder.num_hidden_layers} layers of width {decoder.hidden_size}, {decoder.vocab_size} rows).
The files have the layout of Apple's `llava_qwen2` checkpoints. It was trained from random weights; no published
weights went into it. It knows the six kinds of question of `scenes` and nothing else.

## Data

`scenes` (`edgevlm.zoo.scenes`, training split): generated images of coloured shapes, and numbers composed from the real
handwritten digits of the UCI set "Optical Recognition of Handwritten Digits" (CC BY 4.0, by way of scikit-learn's
copy). The splits share neither random streams nor digit images.

## Training

`edgevlm zoo train nano-fastvlm -o DIR --seed {settings.seed}`; {counts}; {seconds / 60:.0f} minutes on
{os.cpu_count()} CPU cores. First the encoder, with auxiliary heads that name what lies at each visual token (dropped
afterwards), on canvases fuller than the test scenes. Then, on the resting encoder's features, projector and decoder,
with auxiliary losses on what the visual tokens mean and on where the words of a question look. The weights are a moving
average.

## Scores

Test split, exact match of greedy decoding through the deployed prompt; `chance` is the best guess without looking.

    python -m edgevlm.zoo.evaluate zoo:nano-fastvlm --split test -n {items}

{table(scores)}

{verdict(scores)}
"""


def verdict(scores: list[Score]) -> str:
    """Whether the stated target is met, in words."""
    *types, overall = scores
    met = overall.accuracy >= TARGET_ALL and all(score.accuracy >= TARGET_EACH for score in types)
    target = f"at least {TARGET_ALL:.0%} over all types and {TARGET_EACH:.0%} in each"
    if met:
        return f"The target ({target}) is met."
    short = ", ".join(f"{s.type} {s.accuracy:.1%}" for s in types if s.accuracy < TARGET_EACH)
    return f"The target ({target}) is **not met**" + (f": {short}." if short else ".")
