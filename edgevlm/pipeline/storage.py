"""How many bytes weights take in each format and precision, and what they are computed in, before anything is written.

In: a `ModelSpec` and what a recipe says of formats and precisions. Out: `Weights` by component for the forecast.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn

from edgevlm.exporters.tensorrt.schemes import tensorrt_scheme
from edgevlm.models.cost import decoder_module, fusion_module, vision_module
from edgevlm.quant.schemes import scheme_for
from edgevlm.quant.sizes import float_bytes, matrix_bytes, vision_bytes
from edgevlm.quant.tensor import QuantScheme
from edgevlm.recipe import GgufType, Precision, VisionPrecision
from edgevlm.spec import ModelSpec
from edgevlm.targets.decoder_cost import embedding_parameters, layer_matrices
from edgevlm.targets.profile import Format, TargetProfile
from edgevlm.targets.roofline import Weights

#: Bits of a weight of GGUF's types, and of llama.cpp's stand-ins where 256 does not divide the width.
_GGUF_BITS: dict[GgufType, float] = {
    "f32": 32,
    "f16": 16,
    "q8_0": 8.5,
    "q4_0": 4.5,
    "q4_1": 5.0,
    "iq4_nl": 4.5,
    "q4_k_m": 4.83,
}
_SUPERBLOCK = 256
_Q6_K, _Q5_0, _Q8_0 = 6.5625, 5.5, 8.5


@dataclass(frozen=True)
class Storage:
    """How a bundle stores a model.

    Attributes:
        format: of the artefacts.
        precision: of the decoder.
        vision_precision: of the vision tower.
        gguf_type: the decoder's where the format is gguf.
        narrow_cache: keys and values are int8.
    """

    format: Format
    precision: Precision
    vision_precision: VisionPrecision
    gguf_type: GgufType
    narrow_cache: bool = False

    @property
    def cache_value_bytes(self) -> float:
        """Bytes of one number in the cache: float32 for ONNX, else float16."""
        if self.narrow_cache:
            return 1.0
        return 4.0 if self.format == "onnx" else 2.0

    def computes_in(self, profile: TargetProfile) -> tuple[str, str]:
        """The types that vision tower and prefill multiply in on a device.

        GPUs widen int4 and int8 weights to float16. CPUs round activations to int8 and compute the rest in float32.
        """
        vision = "int8" if self.vision_precision == "w8a8" else "fp32"
        narrow = self.precision in ("int8", "int4")
        if profile.kind == "cpu":
            return vision, "int8" if narrow else "fp32"
        if self.precision == "fp32":
            return vision, "fp32"
        return "int8" if self.vision_precision == "w8a8" else "fp16", "fp16"

    def weights(self, spec: ModelSpec, profile: TargetProfile) -> tuple[Weights, ...]:
        """Parameters and bytes by component, on a device."""
        parts = [self._vision(spec, profile), *self._fusion(spec), *self._decoder(spec, profile)]
        return tuple(parts)

    def _vision(self, spec: ModelSpec, profile: TargetProfile) -> Weights:
        module = vision_module(spec)
        stored = vision_bytes(module, "int8" if self.vision_precision == "w8a8" else self.vision_precision)
        parameters = _parameters(module)
        # CPU engines widen stored numbers once, when they load.
        widened = profile.kind == "cpu" and self.vision_precision != "w8a8"
        return Weights("vision", parameters, stored, 4 * parameters if widened else stored)

    def _fusion(self, spec: ModelSpec) -> list[Weights]:
        fusion = fusion_module(spec)
        if fusion is None or spec.fusion is None:
            return []
        stored = spec.fusion.num_hidden_layers * self._layer_bytes(spec) + float_bytes(fusion)
        return [Weights("fusion", _parameters(fusion), stored, stored)]

    def _decoder(self, spec: ModelSpec, profile: TargetProfile) -> list[Weights]:
        decoder = spec.decoder
        module = decoder_module(spec)
        table, head = embedding_parameters(decoder), self._head_bytes(spec)
        vectors = float_bytes(module) // (2 if self.format == "tensorrt" and self.precision != "fp32" else 1)
        layers = decoder.num_hidden_layers * self._layer_bytes(spec) + vectors
        inner = _parameters(module) - table * (1 if decoder.tied_embeddings else 2)
        widened = profile.kind == "cpu" and self.format == "onnx" and self.precision == "fp16"
        factor = 2 if widened else 1
        read = factor * layers
        # A tied head is stored once. TensorRT's engine of the decoder holds it again.
        shared = decoder.tied_embeddings and self.format != "tensorrt"
        parts = [Weights("decoder", inner, layers, read, read)]
        if shared:
            return [*parts, Weights("embedding and head", table, head, factor * head, factor * head)]
        second, stored = (0, 0) if decoder.tied_embeddings else (table, head)
        return [*parts, Weights("embedding", table, head, head), Weights("head", second, stored, head, factor * head)]

    def _layer_bytes(self, spec: ModelSpec) -> int:
        return sum(self._matrix(rows, columns) for rows, columns in layer_matrices(spec.decoder))

    def _head_bytes(self, spec: ModelSpec) -> int:
        rows, columns = spec.decoder.vocab_size, spec.decoder.hidden_size
        if self.format == "gguf" and self.gguf_type == "q4_k_m":
            return math.ceil(rows * columns * (_Q8_0 if columns % _SUPERBLOCK else _Q6_K) / 8)
        return self._matrix(rows, columns)

    def _matrix(self, rows: int, columns: int) -> int:
        """Bytes of a matrix of the decoder."""
        if self.format == "gguf":
            stands_in = self.gguf_type == "q4_k_m" and columns % _SUPERBLOCK
            bits = _Q5_0 if stands_in else _GGUF_BITS[self.gguf_type]
            return math.ceil(rows * columns * bits / 8)
        if self.format == "onnx":
            return matrix_bytes(rows, columns, scheme_for("", "linear", columns, self.precision))
        scheme = tensorrt_scheme("", "linear", columns, self.precision)
        wide = matrix_bytes(rows, columns, scheme)
        # Scales are float16 where ONNX Runtime's are float32.
        return wide - 2 * rows * -(-columns // scheme.group_size) if isinstance(scheme, QuantScheme) else wide


def _parameters(module: nn.Module) -> int:
    return sum(tensor.numel() for tensor in module.parameters())
