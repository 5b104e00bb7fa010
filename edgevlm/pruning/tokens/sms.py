"""Sparsity meets similarity (arXiv 2409.01162): keep the head of the curve of sorted scores, up to where it turns.

In: a model and calibration images. Out: the K of a method that scores tokens. Similarities to the class token have a
long tail: few are high, many are low and alike. The published method cuts the sorted curve of each image at its
inflection point; a graph has one K, so that the curve cut here is the mean over images of their sorted scores. The
point is the knee of that curve: from the first score to the last draw a straight line; where the curve lies farthest
below it, it turns from falling fast to falling slowly. (A change of sign of the second difference would be another
reading; the curves measured have dozens of them, at places that depend on noise.)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from edgevlm import reference
from edgevlm.errors import InputError
from edgevlm.imageio import load_image
from edgevlm.models.taps import Taps, TokenReducer
from edgevlm.models.vlm import VisionModel, VlmModel
from edgevlm.passes import PassContext
from edgevlm.preprocess import PreparedImage, normalise, prepare
from edgevlm.pruning.tokens.attention import Attention
from edgevlm.pruning.tokens.attention_scores import has_class_token
from edgevlm.pruning.tokens.chooser import Choice, Chooser
from edgevlm.pruning.tokens.cls_similarity import ClsSimilarity
from edgevlm.pruning.tokens.fastervlm import FasterVlm
from edgevlm.pruning.tokens.gprune import GPrune
from edgevlm.pruning.tokens.reducer import Options, Ranking
from edgevlm.pruning.tokens.vtc_cls import VtcCls
from edgevlm.spec import ModelSpec

#: Methods whose scores may be cut.
SCORED: dict[str, type[Ranking[Any]]] = {
    method.name: method for method in (ClsSimilarity, FasterVlm, VtcCls, Attention, GPrune)
}


class SmsOptions(Options):
    """Options of `sms`.

    Attributes:
        by: the method whose scores are sorted, and which then keeps K; the published one is `cls-similarity`.
    """

    by: Literal["cls-similarity", "fastervlm", "vtc-cls", "attention", "gprune"] = "cls-similarity"


class Sms(Chooser[SmsOptions]):
    """K = the tokens up to the knee of the mean sorted scores of the calibration images."""

    name = "sms"
    summary = "as many as lie in front of the knee of the scores' curve"
    source = "SMS (arXiv 2409.01162)"
    uses_cls = True
    Options = SmsOptions

    @classmethod
    def refuses(cls, spec: ModelSpec, options: SmsOptions) -> str | None:
        """No class token to compare with, or too few tokens for a curve."""
        if SCORED[options.by].uses_cls and not has_class_token(spec.vision):
            return f"its encoder has no class token, which {options.by} reads; use by=attention instead"
        tokens = spec.vision.image_tokens
        return None if tokens > 2 else f"the curve of {tokens} scores has no knee"

    @classmethod
    def supposed(cls, spec: ModelSpec, options: SmsOptions) -> Choice:  # noqa: ARG003
        """The first token."""
        return Choice(options.by, 1, "")

    @classmethod
    @torch.no_grad()
    def choose(cls, model: VlmModel, context: PassContext, options: SmsOptions) -> Choice:
        """Up to the knee.

        Raises:
            InputError: the curve has none.
        """
        curves: list[Tensor] = []
        scored = _scored(model, options.by, curves.append)
        images = 0
        for image in _images(model, context):
            reference.image_features(scored, [normalise(image.tiles, model.spec.preprocess)])
            images += 1
        keep = knee(torch.cat([curve.double().sort(dim=-1, descending=True).values for curve in curves]).mean(dim=0))
        if keep is None:
            raise InputError(
                f"the mean curve of {options.by}'s sorted scores over {images} calibration images has no knee",
                "prune_tokens",
                f"choose K yourself, as {options.by}:K",
            )
        total = model.spec.vision.image_tokens
        reason = f"sms chose {keep} of {total} tokens: the knee of {options.by}'s scores of {images} calibration images"
        return Choice(options.by, keep, reason)


def knee(curve: Tensor) -> int | None:
    """How many of the falling scores `[N]` lie up to the knee, itself included; of equal ones the first.

    None where the curve nowhere lies below the straight line from its first score to its last.
    """
    line = torch.linspace(0, 1, len(curve), dtype=torch.float64)
    chord = curve[0].double() + line * (curve[-1] - curve[0]).double()
    depth = chord - curve.double()
    place = int(torch.sort(depth, descending=True, stable=True).indices[0])
    return place + 1 if depth[place] > 1e-9 * float((curve[0] - curve[-1]).abs()) else None


class _Scores(TokenReducer):
    """Tells the scores of a batch, and reduces nothing."""

    def __init__(self, method: Ranking[Any], tell: Callable[[Tensor], None]) -> None:
        super().__init__()
        self.method, self.layers, self.before_projector = method, method.layers, method.before_projector
        # The vision side is copied when it runs; a copy of this still calls the same function.
        self.tell = tell

    def forward(self, x: Tensor, taps: Taps) -> Tensor:
        """Embeddings `[B, N, C]` as they are."""
        self.tell(self.method.scores(x, taps))
        return x


def _scored(model: VlmModel, by: str, tell: Callable[[Tensor], None]) -> VlmModel:
    """The model with a vision side that calls `tell` with each image's scores `[tiles, N]`."""
    method, vision = SCORED[by], model.vision
    scores = _Scores(method(model.spec.vision, 1, method.Options()), tell)
    return dataclasses.replace(
        model, vision=VisionModel(vision.encoder, vision.projector, vision.shuffle, scores).eval()
    )


def _images(model: VlmModel, context: PassContext) -> Iterator[PreparedImage]:
    """Each calibration image once, as the vision side gets it."""
    assert context.calibration is not None
    seen: set[bytes] = set()
    for index, sample in enumerate(context.calibration.samples()):
        context.progress(index, context.calibration.count, f"scores of calibration image {index + 1}")
        image = prepare(load_image(sample.image), model.spec.preprocess)
        if image.key not in seen:
            seen.add(image.key)
            yield image
