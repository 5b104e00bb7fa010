"""What a method is that drops image tokens between two layers of the decoder (`edgevlm.models.token_drop`).

All tokens enter the decoder; behind some layer fewer of each image go on. Unlike a reducer in front of the decoder it
sees the question, and the first layers cost what they did.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod

from edgevlm.models.rebuild import with_decoder
from edgevlm.models.vlm import VlmModel
from edgevlm.pruning.tokens.reducer import Method, OptionsT
from edgevlm.spec import ModelSpec, TokenDropSpec


class DecoderMethod(Method[OptionsT]):
    """One method inside the decoder."""

    needs_text = inside_decoder = True

    @classmethod
    @abstractmethod
    def drop(cls, spec: ModelSpec, keep: int, options: OptionsT) -> TokenDropSpec:
        """What it does in this model; `refuses` has been asked."""

    @classmethod
    def planned(cls, spec: ModelSpec, keep: int, options: OptionsT) -> ModelSpec:
        """The spec of the model with the method."""
        decoder = dataclasses.replace(spec.decoder, token_drop=cls.drop(spec, keep, options))
        return dataclasses.replace(spec, decoder=decoder)

    @classmethod
    def reduced(cls, model: VlmModel, keep: int, options: OptionsT) -> VlmModel:
        """The model with the method; it shares all weights with the one given."""
        return with_decoder(model, cls.planned(model.spec, keep, options).decoder, {})


def layer_refusal(spec: ModelSpec, after: int) -> str | None:
    """Why tokens cannot be dropped behind so many layers, or None."""
    layers = spec.decoder.num_hidden_layers
    return None if after < layers else f"it has {layers} layers, so 'after' is 1 to {layers - 1}, not {after}"
