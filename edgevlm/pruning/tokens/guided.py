"""What methods that read the question share: how alike the question and the patches of an image are."""

from __future__ import annotations

from torch import Tensor

from edgevlm.models.taps import Taps
from edgevlm.pruning.tokens.attention_scores import has_class_token
from edgevlm.pruning.tokens.selecting import unit
from edgevlm.spec import LdpSpec, ModelSpec, VitSpec

#: Where a checkpoint's text tower is looked for, as people read it.
PLACE = "put the whole CLIP that its encoder comes from, with tokenizer.json, into a subfolder clip/ of the checkpoint"


def question_similarity(taps: Taps) -> Tensor:
    """Mean cosine `[B, N]` of each patch and the pieces of the question."""
    assert taps.text is not None and taps.patches is not None, "the vision side was not given the question"
    return (unit(taps.patches) @ taps.text.transpose(0, 1))[..., 0]


def without_text(spec: ModelSpec, method: str) -> str | None:
    """Why a question cannot be compared with the patches of this model, or None."""
    encoder, vision = spec.vision.encoder, spec.vision
    if not isinstance(encoder, VitSpec):
        return f"its encoder has no text tower in its checkpoints, which {method} compares patches with"
    if not has_class_token(vision):
        return (
            f"its encoder is not a CLIP, whose patches have a way into the space of the text tower; {method} needs it"
        )
    if vision.pixel_shuffle > 1 or isinstance(vision.projector, LdpSpec):
        return f"it joins neighbouring patches, so that {method} cannot compare tokens with the question"
    if spec.text_tower is None:
        return f"its checkpoint does not hold the text tower that {method} encodes the question with; {PLACE}"
    return None
