"""The pass `quantize`: codes for the decoder's matrices, chosen by GPTQ, AWQ, HQQ or rounding.

In: a model and, for the algorithms that look at inputs, calibration samples. Out: the same model with
`VlmModel.quantized`, which exporters lay out as it is. AWQ's factors are folded into the weights around each matrix, so
that the model before rounding still answers alike. Embedding and head are rounded to nearest, in the bits that the
recipe's precision says or in those asked for.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor

from edgevlm.calibration.layers import linear_groups
from edgevlm.calibration.moments import LayerMoments, layer_moments
from edgevlm.calibration.scratch import Scratch
from edgevlm.errors import CheckpointError
from edgevlm.models.decoder import Decoder, DecoderLayer
from edgevlm.models.rebuild import with_decoder, with_note
from edgevlm.models.vlm import VlmModel
from edgevlm.passes import Pass, PassContext, Stage
from edgevlm.progress import part_of
from edgevlm.quant import rtn
from edgevlm.quant.awq import channel_factors, clipped
from edgevlm.quant.folding import fold, source_of
from edgevlm.quant.gptq import DAMPING, gptq
from edgevlm.quant.hqq import hqq
from edgevlm.quant.presets import PRESETS, scheme_of
from edgevlm.quant.schemes import group_size
from edgevlm.quant.tensor import QuantizedTensor, QuantScheme
from edgevlm.recipe import Recipe
from edgevlm.spec import DecoderSpec, ModelSpec

#: Group sizes that kernels have.
GROUP_SIZES = (16, 32, 64, 128, 256)


class QuantizeConfig(BaseModel):
    """What a recipe says about quantization.

    Attributes:
        scheme: one of `edgevlm.quant.presets.PRESETS`.
        group_size: inputs that share a scale, instead of the scheme's.
        symmetric: without zero points, instead of the scheme's.
        embedding: bits of embedding and head, instead of the decoder's.
        act_order: of GPTQ, see `edgevlm.quant.gptq`.
        damping: of GPTQ.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    scheme: str
    group_size: int | None = None
    symmetric: bool | None = None
    embedding: Literal[4, 8] | None = None
    act_order: bool = True
    damping: float = Field(default=DAMPING, gt=0, le=1)

    @field_validator("scheme")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in PRESETS:
            raise ValueError(f"one of {', '.join(PRESETS)}")
        return value

    @field_validator("group_size")
    @classmethod
    def _has_kernels(cls, value: int | None) -> int | None:
        if value is not None and value not in GROUP_SIZES:
            raise ValueError(f"one of {', '.join(map(str, GROUP_SIZES))}")
        return value

    @field_validator("embedding", mode="before")
    @classmethod
    def _number(cls, value: object) -> object:
        return int(value) if isinstance(value, str) and value.isdigit() else value


class Quantize(Pass[QuantizeConfig]):
    """Codes for the decoder's matrices."""

    name, stage = "quantize", Stage.QUANTIZATION
    Config = QuantizeConfig

    def __init__(self, config: QuantizeConfig, seed: int) -> None:
        super().__init__(config, seed)
        preset = PRESETS[config.scheme]
        symmetric = preset.symmetric if config.symmetric is None else config.symmetric
        size = config.group_size or preset.group_size
        self.preset = dataclasses.replace(preset, group_size=size, symmetric=symmetric)
        self.needs_calibration = preset.algorithm not in ("rtn", "hqq")

    def fits(self, recipe: Recipe) -> str | None:
        """Why the pass cannot stand in this recipe, or None."""
        scheme, preset = self.config.scheme, self.preset
        if recipe.format not in preset.formats:
            return f"{scheme} is for format {' or '.join(preset.formats)}, not {recipe.format}"
        if recipe.format == "gguf":
            wanted = recipe.gguf_type or {"int4": "q4_0", "int8": "q8_0"}.get(recipe.precision)
            return None if wanted == scheme else f"{scheme} needs gguf_type {scheme}"
        if recipe.precision != preset.precision:
            return f"{scheme} needs precision {preset.precision}, not {recipe.precision}"
        return None

    def applies_to(self, spec: ModelSpec) -> str | None:
        """Why this model cannot take the pass, or None."""
        size = self.preset.group_size
        for what, width in _widths(spec.decoder).items():
            if size is not None and width % size:
                fitting = ", ".join(str(each) for each in GROUP_SIZES if not width % each)
                fits = f"; these do: {fitting}" if fitting else ""
                return f"a group size of {size} does not divide the {width} inputs of {what}{fits}"
        return None

    def planned(self, spec: ModelSpec) -> ModelSpec:
        """The spec as it is."""
        return spec

    @torch.no_grad()
    def run(self, model: VlmModel, context: PassContext) -> VlmModel:
        """The model with codes."""
        scratch = Scratch(0 if context.calibration is None else context.calibration.memory)
        quantized: dict[str, QuantizedTensor | QuantScheme] = {}
        changed: dict[str, Tensor] = {}
        for found in self._layers(model, context, scratch):
            path = f"layers.{found.index}"
            moments = self._fold(found) if "awq" in self.preset.algorithm else found.moments
            for group in linear_groups(found.layer):
                for name, tensor in self._quantize(found.layer, group, moments.get(group[0]), path).items():
                    quantized[f"{path}.{name}.weight"] = _kept(tensor, scratch)
            if "awq" in self.preset.algorithm:
                changed |= _altered(model.decoder, found, scratch)
        quantized |= self._tables(model.decoder)
        if changed:
            model = with_decoder(model, model.spec.decoder, changed)
        model = dataclasses.replace(model, quantized=quantized)
        return with_note(model, f"quantized: {self._described(model.spec.decoder)}")

    def _layers(self, model: VlmModel, context: PassContext, scratch: Scratch) -> Iterator[LayerMoments]:
        if self.needs_calibration:
            assert context.calibration is not None
            report = part_of(context.progress, 0, 1)
            yield from layer_moments(model, context.calibration, scratch, report)
            return
        count = len(model.decoder.layers)
        for index, layer in enumerate(model.decoder.layers):
            context.progress(index, count, f"layer {index + 1} of {count}")
            copied = copy.deepcopy(layer).float()
            assert isinstance(copied, DecoderLayer)
            yield LayerMoments(index, copied, {})

    def _scheme(self, columns: int) -> QuantScheme:
        return scheme_of(self.preset, columns, group_size(columns))

    def _fold(self, found: LayerMoments) -> dict[str, Tensor]:
        """Fold AWQ's factors into the layer; returns the second moments of what its modules then get."""
        chosen = {}
        for group in linear_groups(found.layer):
            source, moments = source_of(found.layer, group), found.moments[group[0]]
            if source is not None:
                weight = _stacked(found.layer, group)
                chosen[group] = source, channel_factors(weight, moments, self._scheme(weight.shape[1]), source.owners)
        scaled = dict(found.moments)
        for group, (source, factors) in chosen.items():
            fold(found.layer, group, source, factors)
            scaled[group[0]] = scaled[group[0]] / factors / factors[:, None]
        return scaled

    def _quantize(
        self, layer: DecoderLayer, group: tuple[str, ...], moments: Tensor | None, path: str
    ) -> dict[str, QuantizedTensor]:
        """Codes of modules with the same inputs."""
        weight, config = _stacked(layer, group), self.config
        if not bool(torch.isfinite(weight).all()):
            raise CheckpointError(
                "a weight is not finite", f"decoder.{path}.{group[0]}", "download the checkpoint again"
            )
        scheme = self._scheme(weight.shape[1])
        if scheme.algorithm == "rtn":
            whole = rtn.quantize(weight, scheme)
        elif scheme.algorithm == "hqq":
            whole = hqq(weight, scheme)
        else:
            assert moments is not None
            if scheme.algorithm == "awq":
                whole = clipped(weight, moments, scheme)
            else:
                whole = gptq(weight, moments, scheme, act_order=config.act_order, damping=config.damping)
        split, start = {}, 0
        for name in group:
            rows = slice(start, start := start + len(layer.get_submodule(name).weight))  # type: ignore[arg-type]
            zeros = None if whole.zero_points is None else whole.zero_points[rows]
            split[name] = QuantizedTensor(whole.codes[rows], whole.scales[rows], zeros, scheme)
        return split

    def _tables(self, decoder: Decoder) -> dict[str, QuantScheme]:
        """Schemes of the embedding and of a head of its own, where they are not what the precision says."""
        if self.config.embedding is None:
            return {}
        names = ["embed_tokens.weight"] if decoder.spec.tied_embeddings else ["embed_tokens.weight", "lm_head.weight"]
        columns = decoder.spec.hidden_size
        preset = dataclasses.replace(self.preset, bits=self.config.embedding, algorithm="rtn")
        return dict.fromkeys(names, scheme_of(preset, columns, group_size(columns)))

    def _described(self, spec: DecoderSpec) -> str:
        scheme = self._scheme(spec.hidden_size)
        zeros = "symmetric" if scheme.symmetric else "with zero points"
        embedding = "" if self.config.embedding is None else f"; embedding and head {self.config.embedding} bits"
        return f"{scheme.algorithm}, {scheme.bits} bits in groups of {scheme.group_size}, {zeros}{embedding}"


def _widths(spec: DecoderSpec) -> dict[str, int]:
    """Inputs of the decoder's matrices, by a name for people."""
    down = "mlp.down_proj" if spec.mlp == "swiglu" else "mlp.fc2"
    return {
        "self_attn.q_proj": spec.hidden_size,
        "self_attn.o_proj": spec.query_size,
        down: spec.intermediate_size,
    }


def _stacked(layer: DecoderLayer, group: tuple[str, ...]) -> Tensor:
    """The float32 matrices of modules with the same inputs, one below the other."""
    weights = [layer.get_parameter(f"{name}.weight").data for name in group]
    return weights[0] if len(weights) == 1 else torch.cat(weights)


def _kept(tensor: QuantizedTensor, scratch: Scratch) -> QuantizedTensor:
    """The same with codes that may lie on disk."""
    codes = scratch.keep(torch.from_numpy(tensor.codes)).numpy()
    return dataclasses.replace(tensor, codes=codes)


def _altered(decoder: Decoder, found: LayerMoments, scratch: Scratch) -> dict[str, Tensor]:
    """What folding changed of a layer. Matrices keep the type that they are stored in; vectors, few, are float32."""
    stored, changed = decoder.layers[found.index].state_dict(), {}
    for name, value in found.layer.state_dict().items():
        if not torch.equal(value, stored[name].float()):
            dtype = stored[name].dtype if value.ndim > 1 else torch.float32
            changed[f"layers.{found.index}.{name}"] = scratch.keep(value, dtype)
    return changed
