"""Methods that read the question are refused with the reason where patches cannot be compared with it."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from clip_models import text_side
from reducer_models import CLIP, SIGLIP
from refusals import left_in, refusal
from specs import TINY

from edgevlm.pruning.tokens.prune_tokens import PruneTokens, PruneTokensConfig
from edgevlm.spec import FusionSpec, LdpSpec, ModelSpec, QFormerSpec, VisionSpec

WITH_TEXT = dataclasses.replace(
    TINY, vision=VisionSpec(CLIP, TINY.vision.projector, 48, 36), text_tower=text_side(CLIP, Path("unread")).spec
)


def vision(**changes: Any) -> ModelSpec:
    return dataclasses.replace(WITH_TEXT, vision=dataclasses.replace(WITH_TEXT.vision, **changes))


def reason(spec: ModelSpec, method: str, keep: int = 9, **options: Any) -> str | None:
    return PruneTokens(PruneTokensConfig(method=method, keep=keep, options=options), 0).applies_to(spec)


@pytest.mark.parametrize("method", ["cdpruner", "recoverable"])
def test_a_clip_with_its_text_tower_is_taken(method: str) -> None:
    assert reason(WITH_TEXT, method) is None
    planned = PruneTokens(PruneTokensConfig(method=method, keep=9), 0).planned(WITH_TEXT)
    assert planned.vision.text == WITH_TEXT.text_tower
    written = ModelSpec.from_dict(planned.to_dict())
    assert written == planned
    assert written.vision.text == WITH_TEXT.text_tower


@pytest.mark.parametrize(
    ("spec", "method", "expected"),
    [
        (TINY, "cdpruner", "no text tower in its checkpoints, which cdpruner compares patches with"),
        (vision(encoder=SIGLIP), "cdpruner", "its encoder is not a CLIP"),
        (vision(encoder=SIGLIP), "recoverable", "no class token"),
        (dataclasses.replace(WITH_TEXT, text_tower=None), "cdpruner", "with tokenizer.json, into a subfolder clip/"),
        (dataclasses.replace(WITH_TEXT, text_tower=None), "recoverable", "with tokenizer.json, into a subfolder clip/"),
        (vision(pixel_shuffle=2, image_tokens=9), "cdpruner", "joins neighbouring patches"),
        (vision(projector=LdpSpec(2, side=3), image_tokens=9), "cdpruner", "joins neighbouring patches"),
        (vision(projector=QFormerSpec(32, 64, 2, 4, 32), image_tokens=32), "cdpruner", "Q-Former makes 32 tokens"),
        (dataclasses.replace(WITH_TEXT, fusion=FusionSpec(2, 1)), "recoverable", "leaves 1 token of an image already"),
        (vision(encoder=dataclasses.replace(CLIP, hidden_size=8)), "cdpruner", "9 tokens of 8 channels"),
    ],
)
def test_a_reason_is_given(spec: ModelSpec, method: str, expected: str) -> None:
    found = reason(spec, method)
    assert found is not None
    assert expected in found


def test_numbers_and_options_that_do_not_fit_are_refused() -> None:
    found = reason(WITH_TEXT, "recoverable", keep=4, recovered=3)
    assert found == "of 4 tokens, 3 recovered and 1 merged ones leave none for the class token"
    assert "37 tokens cannot be kept of 36" in str(reason(WITH_TEXT, "cdpruner", keep=37))
    with pytest.raises(Exception, match="theta"):
        reason(WITH_TEXT, "cdpruner", theta=1)


def test_the_command_line_gives_the_reason_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("-o", tmp_path / "out", "--prune-tokens", "cdpruner:16")
    what, *_ = refusal(capsys)("export", "zoo:nano-fastvlm", *flags)
    assert "no text tower in its checkpoints" in what
    left_in(tmp_path)
