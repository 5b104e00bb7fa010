"""The pass `quantize`: codes for the decoder's matrices, chosen by GPTQ, AWQ, HQQ or rounding, or by a budget.

In: a model and, for the algorithms that look at inputs, calibration samples. Out: the same model with
`VlmModel.quantized`, which exporters lay out as it is. AWQ's factors are folded into the weights around each matrix, so
that the model before rounding still answers alike. Embedding and head are rounded to nearest, in the bits that the
recipe's precision says or in those asked for.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from torch import Tensor

from edgevlm.calibration.layers import float_layer
from edgevlm.calibration.moments import LayerMoments, layer_moments
from edgevlm.calibration.scratch import Scratch
from edgevlm.models.decoder import Decoder
from edgevlm.models.rebuild import with_decoder, with_note
from edgevlm.models.vlm import VlmModel
from edgevlm.passes import Pass, PassContext, Stage
from edgevlm.progress import part_of
from edgevlm.quant import auto
from edgevlm.quant.budget import parse_budget
from edgevlm.quant.gptq import DAMPING
from edgevlm.quant.layer_codes import GptqOptions, layer_codes, scheme_for_width
from edgevlm.quant.presets import GROUP_SIZES, PRESETS, Preset, candidates, read_scheme
from edgevlm.quant.schemes import group_size
from edgevlm.quant.sizes import float_bytes, matrix_bytes, vision_bytes
from edgevlm.quant.tensor import QuantizedTensor, QuantScheme
from edgevlm.recipe import PassEntry, Precision, Recipe
from edgevlm.spec import DecoderSpec, ModelSpec

_AUTO = "auto"
#: What `auto` spends where nobody says.
DEFAULT_BUDGET = "accuracy_drop=1.0"


class QuantizeConfig(BaseModel):
    """What a recipe says about quantization.

    Attributes:
        scheme: one of `edgevlm.quant.presets.PRESETS`, perhaps with a group size behind a colon, or `auto`.
        budget: of `auto`: `size=300MB`, `bits=4.5`, `kl=0.01` or `accuracy_drop=1.0`.
        layers: of `auto`, what it chose before: a scheme for each decoder layer; nothing is searched then.
        tables: the scheme whose grid embedding and head are rounded to; None takes the precision's. `auto` chooses it.
        group_size: inputs that share a scale, instead of the scheme's.
        symmetric: without zero points, instead of the scheme's.
        act_order: of GPTQ, see `edgevlm.quant.gptq`.
        damping: of GPTQ.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    scheme: str
    budget: str | None = None
    layers: tuple[str, ...] | None = None
    tables: str | None = None
    group_size: int | None = None
    symmetric: bool | None = None
    act_order: bool = True
    damping: float = Field(default=DAMPING, gt=0, le=1)

    @field_validator("scheme", "tables")
    @classmethod
    def _known(cls, value: str | None) -> str | None:
        if value not in (None, _AUTO):
            read_scheme(value)
        return value

    @field_validator("layers")
    @classmethod
    def _all_known(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for each in value or ():
            read_scheme(each)
        return value

    @field_validator("budget")
    @classmethod
    def _readable(cls, value: str | None) -> str | None:
        if value is not None:
            parse_budget(value)
        return value

    @field_validator("group_size")
    @classmethod
    def _has_kernels(cls, value: int | None) -> int | None:
        if value is not None and value not in GROUP_SIZES:
            raise ValueError(f"one of {', '.join(map(str, GROUP_SIZES))}")
        return value

    @model_validator(mode="after")
    def _one_way(self) -> QuantizeConfig:
        fixed = [name for name in ("group_size", "symmetric") if getattr(self, name) is not None]
        if self.scheme == _AUTO and fixed:
            raise ValueError(f"{fixed[0]} cannot be given with scheme auto, which chooses it")
        free = [name for name in ("budget", "layers") if getattr(self, name) is not None]
        if self.scheme != _AUTO and free:
            raise ValueError(f"{free[0]} needs scheme auto")
        if (self.layers is None) != (self.tables is None) and self.scheme == _AUTO:
            raise ValueError("layers and tables are given together, as auto chose them")
        return self


class Quantize(Pass[QuantizeConfig]):
    """Codes for the decoder's matrices."""

    name, stage = "quantize", Stage.QUANTIZATION
    page = "docs/quantization.md"
    Config = QuantizeConfig

    def __init__(self, config: QuantizeConfig, seed: int) -> None:
        super().__init__(config, seed)
        self.options = GptqOptions(config.act_order, config.damping)
        self._recipe: Recipe | None = None
        self._plan: auto.Plan | None = None
        if config.scheme == _AUTO:
            self.needs_calibration = True
            return
        preset = read_scheme(config.scheme)
        symmetric = preset.symmetric if config.symmetric is None else config.symmetric
        size = config.group_size or preset.group_size
        self._uniform = dataclasses.replace(preset, group_size=size, symmetric=symmetric)
        self.needs_calibration = preset.needs_calibration

    def settled(self) -> PassEntry | None:
        """What `auto` chose."""
        if self._plan is None:
            return None
        fields = {**self.config.model_dump(exclude_defaults=True), "layers": self._plan.layers}
        return PassEntry.model_validate({"name": self.name, **fields, "tables": self._plan.tables})

    def fits(self, recipe: Recipe) -> str | None:
        """Why the pass cannot stand in this recipe, or None."""
        self._recipe = recipe
        scheme = self.config.scheme
        if scheme == _AUTO:
            if recipe.format == "tensorrt":
                return "auto measures in ONNX Runtime's kernels; name a scheme, such as w4a16-trt"
            if recipe.precision != "int4":
                return f"auto needs precision int4, not {recipe.precision}"
            other = recipe.format == "gguf" and recipe.gguf_type not in (None, "q4_0")
            return f"auto chooses among q4_0 and q8_0, not {recipe.gguf_type}" if other else None
        preset = self._uniform
        if recipe.format not in preset.formats:
            return f"{scheme} is for format {' or '.join(preset.formats)}, not {recipe.format}"
        if recipe.format == "gguf":
            name = scheme.partition(":")[0]
            wanted = recipe.gguf_type or {"int4": "q4_0", "int8": "q8_0"}.get(recipe.precision)
            return None if wanted == name else f"{scheme} needs gguf_type {name}"
        if recipe.precision != preset.precision:
            return f"{scheme} needs precision {preset.precision}, not {recipe.precision}"
        if preset.vision not in (None, recipe.vision_precision):
            return f"{scheme} needs vision_precision {preset.vision}"
        if recipe.format == "tensorrt" and not preset.symmetric:
            return "TensorRT reads no zero points: leave symmetric out"
        tables = read_scheme(self.config.tables) if self.config.tables else preset
        if recipe.format not in tables.formats:
            return f"tables {self.config.tables} is for format {' or '.join(tables.formats)}, not {recipe.format}"
        return None

    def applies_to(self, spec: ModelSpec) -> str | None:
        """Why this model cannot take the pass, or None."""
        given = self.config.layers
        if given is not None and len(given) != spec.decoder.num_hidden_layers:
            return f"it has {spec.decoder.num_hidden_layers} layers, and the recipe has schemes for {len(given)}"
        presets = [self._uniform] if self._one else [read_scheme(name) for name in dict.fromkeys(given or ())]
        for preset in presets:
            for what, width in _widths(spec.decoder).items():
                size = preset.group_size
                if size is None and self._recipe is not None and self._recipe.format == "tensorrt":
                    # Its groups are whole.
                    size = group_size(width)
                if size is not None and width % size:
                    fitting = ", ".join(str(each) for each in GROUP_SIZES if not width % each)
                    fits = f"; these do: {fitting}" if fitting else ""
                    return f"a group size of {size} does not divide the {width} inputs of {what}{fits}"
        return None

    @property
    def _one(self) -> bool:
        """Whether all layers have one scheme."""
        return self.config.scheme != _AUTO

    @torch.no_grad()
    def run(self, model: VlmModel, context: PassContext) -> VlmModel:
        """The model with codes.

        Raises:
            InputError: the budget cannot be met.
            CheckpointError: a weight or an activation is not finite.
        """
        scratch = Scratch(0 if context.calibration is None else context.calibration.memory)
        if not self._one and self.config.layers is None:
            return self._chosen(model, context, scratch)
        presets = [read_scheme(name) for name in self.config.layers or ()]
        presets = presets or [self._uniform] * len(model.decoder.layers)
        quantized: dict[str, QuantizedTensor | QuantScheme] = {}
        changed: dict[str, Tensor] = {}
        for found in self._layers(model, context, scratch):
            preset = presets[found.index]
            for name, tensor in layer_codes(found, preset, self.options).items():
                quantized[f"layers.{found.index}.{name}.weight"] = auto.kept(tensor, scratch)
            if "awq" in preset.algorithm:
                changed |= _altered(model.decoder, found, scratch)
        if changed:
            model = with_decoder(model, model.spec.decoder, changed)
        return self._finished(model, quantized, self.config.tables, presets)

    def _chosen(self, model: VlmModel, context: PassContext, scratch: Scratch) -> VlmModel:
        """The model with what `auto` chooses."""
        assert context.calibration is not None
        assert self._recipe is not None
        schemes = candidates(self._recipe.format, _widths(model.spec.decoder).values())
        budget = parse_budget(self.config.budget or DEFAULT_BUDGET)
        others = _other_weights(model, self._recipe)
        self._plan = auto.search(
            model, context.calibration, budget, schemes, others, self.options, scratch, context.progress
        )
        quantized: dict[str, QuantizedTensor | QuantScheme] = {
            f"layers.{index}.{name}.weight": tensor
            for index, codes in enumerate(self._plan.codes)
            for name, tensor in codes.items()
        }
        presets = [read_scheme(name) for name in self._plan.layers]
        finished = self._finished(model, quantized, self._plan.tables, presets)
        counts = ", ".join(f"{count} x {name}" for name, count in sorted(Counter(self._plan.layers).items()))
        note = f"auto: layers {counts}; tables {self._plan.tables}; KL of the answers {self._plan.kl:.2g}"
        return with_note(finished, note)

    def _layers(self, model: VlmModel, context: PassContext, scratch: Scratch) -> Iterator[LayerMoments]:
        if self.needs_calibration:
            assert context.calibration is not None
            yield from layer_moments(model, context.calibration, scratch, part_of(context.progress, 0, 1))
            return
        count = len(model.decoder.layers)
        for index in range(count):
            context.progress(index, count, f"layer {index + 1} of {count}")
            yield LayerMoments(index, float_layer(model.decoder, index), {})

    def _finished(
        self,
        model: VlmModel,
        quantized: Mapping[str, QuantizedTensor | QuantScheme],
        tables: str | None,
        presets: list[Preset],
    ) -> VlmModel:
        """The model with these codes, schemes of its tables, and notes for people."""
        spec, added = model.spec.decoder, {}
        if tables is not None:
            names = ["embed_tokens.weight", *([] if spec.tied_embeddings else ["lm_head.weight"])]
            preset = dataclasses.replace(read_scheme(tables), algorithm="rtn")
            added = dict.fromkeys(names, scheme_for_width(preset, spec.hidden_size))
        model = dataclasses.replace(model, quantized={**quantized, **added})
        return with_note(model, f"quantized: {_described(spec, presets, tables)}")


def _described(spec: DecoderSpec, presets: list[Preset], tables: str | None) -> str:
    schemes = [scheme_for_width(preset, spec.hidden_size) for preset in dict.fromkeys(presets)]
    each = [
        f"{scheme.algorithm}, {scheme.bits} bits in groups of {scheme.group_size}, "
        f"{'symmetric' if scheme.symmetric else 'with zero points'}"
        for scheme in schemes
    ]
    return " and ".join(each) + ("" if tables is None else f"; embedding and head {tables}")


def _other_weights(model: VlmModel, recipe: Recipe) -> auto.Weights:
    """What is outside the decoder."""
    asked = recipe.vision_precision or "fp16"
    precision: Precision = "int8" if asked == "w8a8" else "fp16" if asked == "auto" else asked
    total = vision_bytes(model.vision, precision)
    count = sum(tensor.numel() for tensor in model.vision.parameters())
    if model.fusion is not None:
        for tensor in model.fusion.parameters():
            count += tensor.numel()
            if tensor.ndim == 2:
                scheme = scheme_for_width(PRESETS["w4-rtn"], tensor.shape[1])
                total += matrix_bytes(tensor.shape[0], tensor.shape[1], scheme)
        total += float_bytes(model.fusion)
    return auto.Weights(total, count)


def _widths(spec: DecoderSpec) -> dict[str, int]:
    """Inputs of the decoder's matrices, by a name for people."""
    down = "mlp.down_proj" if spec.mlp == "swiglu" else "mlp.fc2"
    return {
        "self_attn.q_proj": spec.hidden_size,
        "self_attn.o_proj": spec.query_size,
        down: spec.intermediate_size,
    }


def _altered(decoder: Decoder, found: LayerMoments, scratch: Scratch) -> dict[str, Tensor]:
    """What folding changed of a layer. Matrices keep the type that they are stored in; vectors, few, are float32."""
    stored, changed = decoder.layers[found.index].state_dict(), {}
    for name, value in found.layer.state_dict().items():
        if not torch.equal(value, stored[name].float()):
            dtype = stored[name].dtype if value.ndim > 1 else torch.float32
            changed[f"layers.{found.index}.{name}"] = scratch.keep(value, dtype)
    return changed
