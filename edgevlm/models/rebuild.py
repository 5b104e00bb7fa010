"""A model with another decoder: some tensors changed, the others shared with the model it came from."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from edgevlm.models.decoder import Decoder
from edgevlm.models.tensors import assign
from edgevlm.models.vlm import VlmModel
from edgevlm.spec import DecoderSpec

_LAYER = re.compile(r"(decoder\.layers\.)(\d+)(\..+)")


def with_decoder(
    model: VlmModel, spec: DecoderSpec, changed: Mapping[str, Tensor], kept_layers: Sequence[int] | None = None
) -> VlmModel:
    """`model` with a decoder of `spec`.

    Args:
        model: stays as it is.
        spec: of the new decoder.
        changed: tensors by their name in the new decoder; all others are the model's own.
        kept_layers: which of the model's layers the new decoder has, ascending; None for all.
    """
    layers = range(model.spec.decoder.num_hidden_layers) if kept_layers is None else kept_layers
    places = {old: new for new, old in enumerate(layers)}
    tensors = {}
    for name, value in model.decoder.state_dict().items():
        renamed = _renumbered(f"decoder.{name}", places)
        if renamed is not None:
            tensors[renamed] = changed.get(renamed.removeprefix("decoder."), value)
    with torch.device("meta"):
        decoder = Decoder(spec)
    assign(decoder, tensors, "decoder.")
    decoder.origins = tuple(model.decoder.origins[layer] for layer in layers)
    renamed_sources = {_renumbered(name, places): source for name, source in model.provenance.items()}
    return dataclasses.replace(
        model,
        spec=dataclasses.replace(model.spec, decoder=spec),
        decoder=decoder,
        provenance={name: source for name, source in renamed_sources.items() if name is not None},
    )


def with_note(model: VlmModel, note: str) -> VlmModel:
    """`model` with one more note for people: `edgevlm export` and `inspect` print it."""
    return dataclasses.replace(model, spec=dataclasses.replace(model.spec, notes=(*model.spec.notes, note)))


def _renumbered(name: str, places: Mapping[int, int]) -> str | None:
    """The tensor's name in the new decoder; None where its layer is gone."""
    match = _LAYER.fullmatch(name)
    if match is None:
        return name
    place = places.get(int(match[2]))
    return None if place is None else f"{match[1]}{place}{match[3]}"
