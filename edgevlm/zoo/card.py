"""The model card of a nano model: what it is, what it was trained on, what that cost, and what it scores."""

import os

from edgevlm.spec import CompressedVitSpec, FastViTHDSpec
from edgevlm.zoo.evaluate import Score, table
from edgevlm.zoo.nano import NanoSpec
from edgevlm.zoo.trainer import CAPTIONED, Settings

TARGET_ALL, TARGET_EACH = 0.90, 0.80


def model_card(
    name: str, layout: str, settings: Settings, seconds: float, scores: list[Score], captions: float | None
) -> str:
    """Markdown with true figures.

    Args:
        name: of the model.
        layout: whose files it has, in words.
        settings: of its training.
        seconds: of training.
        scores: of the test split, `all` last.
        captions: share of the right captions found by the CLIP that its encoder was trained as; None if it was not.
    """
    counts = ", ".join(f"{count:,} in stage `{stage}`" for stage, count in settings.images.items())
    decoder, items = settings.spec.decoder, scores[-1].items
    return f"""---
license: apache-2.0
library_name: edgevlm
pipeline_tag: image-text-to-text
---

# {name}

Small enough to ship with a test suite: {_encoder(settings.spec)}, {_projector(settings.spec)} and
a decoder of {decoder.architecture}'s shape ({decoder.num_hidden_layers} layers of width {decoder.hidden_size},
{decoder.vocab_size} rows). The files have the layout of {layout}. No published weights went into it. It knows the six
kinds of question of `scenes` and nothing else.

## Data

`scenes` (`edgevlm.zoo.scenes`, training split): generated images of coloured shapes, and numbers composed from the real
handwritten digits of the UCI set "Optical Recognition of Handwritten Digits" (CC BY 4.0, by way of scikit-learn's
copy). The splits share neither random streams nor digit images.{_clutter(settings)}

## Training

`edgevlm zoo train {name} -o DIR --seed {settings.seed}`; {counts}; {seconds / 60:.0f} minutes on
{os.cpu_count()} CPU cores, which may have had other work. {_stages(settings)}
The weights are a moving average.
{_captions(captions)}
## Scores

Test split, exact match of greedy decoding through the deployed prompt; `chance` is the best guess without looking.

    python -m edgevlm.zoo.evaluate zoo:{name} --split test -n {items}

{table(scores)}

{verdict(scores)}
"""


def _encoder(spec: NanoSpec) -> str:
    encoder, size = spec.encoder, f"{spec.image_size} pixels to {spec.grid**2} visual tokens"
    if isinstance(encoder, FastViTHDSpec):
        return f"a FastViTHD-shaped encoder\n(widths {encoder.dims}, depths {encoder.depths}, {size})"
    vit = encoder.vit if isinstance(encoder, CompressedVitSpec) else encoder
    if spec.text is None:
        return (
            f"an EVA-shaped encoder\n({vit.num_hidden_layers} layers of width {vit.hidden_size}, class token, {size})"
        )
    return (
        f"a CLIP-shaped encoder\n({vit.num_hidden_layers + 1} layers of width {vit.hidden_size}, class token, {size}, "
        "taken before the last layer)"
    )


def _projector(spec: NanoSpec) -> str:
    if spec.fusion is not None:
        return (
            f"a compressor to\n{spec.fusion.image_tokens} token, the two-layer projector, "
            f"{spec.fusion.num_hidden_layers} pre-fusion layers over patches, that token and the text,"
        )
    if spec.queries is None:
        return "the two-layer projector"
    return f"a Q-Former\nof {spec.queries.num_queries} queries ({spec.queries.num_hidden_layers} layers)"


def _stages(settings: Settings) -> str:
    """What happened in each stage, a sentence or two each."""
    return " ".join(
        {
            "vision": f"""First the encoder, with
auxiliary heads that name what lies at each visual token (dropped afterwards), on canvases fuller than the test
scenes{_contrastive(settings.spec)}.""",
            "queries": """Then the Q-Former,
whose queries learned to name what lies each in one region of the image.""",
            "align": f"""Then the decoder of
`{settings.start_from}` was put behind it, and the projector alone learned to speak to it.""",
            "answers": """Then, on the resting
encoder's features, projector and decoder, with auxiliary losses on what the visual tokens mean and on where the words
of a question look.""",
            "fusion": f"""Towers and projector
come from `{settings.start_from}`; the layers of its decoder became the pre-fusion. Compressor, projector, pre-fusion
and decoder then learned together, with auxiliary losses: the last fused tokens of a prompt should read as the words of
the answer, and the decoder look there for the next one.""",
        }[stage]
        for stage in settings.stages
    )


def _clutter(settings: Settings) -> str:
    if not settings.clutter:
        return ""
    return f" Half of the training images have up to {settings.clutter} grey scribbles behind what is asked about."


def _contrastive(spec: NanoSpec) -> str:
    if spec.text is None:
        return ""
    return """,
and at the same time as a CLIP: which caption ("blue star, number 407, red circle") belongs to which image of the
batch, with a small causal text tower"""


def _captions(captions: float | None) -> str:
    if captions is None:
        return ""
    return f"""
Both towers of that CLIP are in the checkpoint: what is not part of the vision tower (text tower, both projections,
logit scale) in `text_tower.safetensors` with `text_tower.json`, or all of it in `clip/`. Of {CAPTIONED} test images,
{captions:.1%} are closest to their own caption of the {CAPTIONED} (chance {1 / CAPTIONED:.1%}).
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
