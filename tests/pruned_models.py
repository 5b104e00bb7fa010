"""Models and calibration samples for tests of passes that prune weights."""

import copy
from typing import Any

import torch
from torch import Tensor

from edgevlm import reference
from edgevlm.calibration import Calibration
from edgevlm.calibration.activations import Activations, embed
from edgevlm.calibration.layers import walk
from edgevlm.calibration.scratch import Scratch
from edgevlm.calibration.sources import open_calibration
from edgevlm.models.vlm import VlmModel
from edgevlm.passes import Pass, PassContext


def silent(_done: float, _total: float, _what: str) -> None:
    """A progress nobody watches."""


def run(
    cls: type[Pass[Any]], model: VlmModel, calibration: Calibration | None, seed: int = 0, **fields: Any
) -> VlmModel:
    """The model after a pass with these fields."""
    made = cls(cls.Config.model_validate(fields), seed)
    assert made.applies_to(model.spec) is None
    return made.run(model, PassContext(calibration, model, silent))


def scenes(count: int) -> Calibration:
    """Samples of `scenes`."""
    return open_calibration("scenes", count)


def states_of(model: VlmModel, calibration: Calibration) -> Activations:
    """The samples in front of the first layer."""
    return embed(model, calibration, Scratch(1 << 30), silent)


@torch.no_grad()
def logits_of(model: VlmModel, calibration: Calibration) -> list[Tensor]:
    """Logits `[S, V]` of each sample."""
    activations = states_of(model, calibration)
    for _ in walk(model.decoder, activations):
        pass
    norm = copy.deepcopy(model.decoder.norm).float()
    return [reference.head_logits(model.decoder, norm(states)) for states in activations.states]


def changed_tensors(before: VlmModel, after: VlmModel) -> set[str]:
    """Names of the decoder's tensors that differ."""
    old, new = before.decoder.state_dict(), after.decoder.state_dict()
    assert old.keys() == new.keys()
    return {name for name in old if not torch.equal(old[name], new[name])}
