"""The tensors of a decoder as a GGUF stores them: names, types, and bytes, made one tensor at a time.

In: a `VlmModel` and the type that matrices get of which it does not say otherwise. Out: `Weight`s. Matrices whose codes
an algorithm chose are laid out as they are; others are rounded as llama.cpp rounds them. Vectors stay float32, because
llama.cpp computes norms and biases in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind
from numpy.typing import NDArray
from torch import Tensor

from edgevlm.errors import CheckpointError, UnsupportedError
from edgevlm.exporters.gguf.blocks import block_type, to_blocks
from edgevlm.exporters.gguf.layout import reorder_rotary, rope_factors, tensor_name
from edgevlm.exporters.gguf.values import gguf_values
from edgevlm.models.vlm import VlmModel
from edgevlm.quant import gguf_grid, rtn
from edgevlm.quant.tensor import QuantizedTensor, QuantScheme
from edgevlm.spec import DecoderSpec

_FLOATS: dict[Kind, np.dtype[Any]] = {Kind.F32: np.dtype(np.float32), Kind.F16: np.dtype(np.float16)}
_HINT = "see docs/gguf-quantization.md"

#: How matrices are stored: the name of a type, a scheme to round by, or codes.
Storage: TypeAlias = 'Literal["f32", "f16", "q8_0", "q4_0"] | QuantScheme | QuantizedTensor'


@dataclass(frozen=True)
class Weight:
    """One tensor to write.

    Attributes:
        source: its name in the IR.
        name: its name in GGUF.
        tensor: the numbers, before rounding.
        storage: how they are stored.
    """

    source: str
    name: str
    tensor: Tensor
    storage: Storage

    @property
    def kind(self) -> Kind:
        """The type of its blocks or numbers."""
        if isinstance(self.storage, str):
            return Kind[self.storage.upper()]
        return block_type(self.storage.scheme if isinstance(self.storage, QuantizedTensor) else self.storage)

    def declare(self, writer: gguf.GGUFWriter) -> None:
        """Tell the writer of shape and type."""
        shape = tuple(self.tensor.shape)
        if self.kind in _FLOATS:
            dtype = _FLOATS[self.kind]
            writer.add_tensor_info(self.name, shape, dtype, self.tensor.numel() * dtype.itemsize)
            return
        block, size = gguf.GGML_QUANT_SIZES[self.kind]
        packed = (shape[0], shape[1] // block * size)
        writer.add_tensor_info(self.name, packed, np.dtype(np.uint8), packed[0] * packed[1], raw_dtype=self.kind)

    def data(self, spec: DecoderSpec) -> NDArray[Any]:
        """Numbers, or blocks as bytes, rows in the order of the architecture.

        Raises:
            CheckpointError: a value is not finite, or does not fit.
        """
        if self.kind in _FLOATS:
            values = gguf_values(self.tensor, _FLOATS[self.kind], self.source)
        else:
            try:
                values = to_blocks(self._codes())
            except ValueError as error:
                raise CheckpointError(str(error), self.source) from error
        return reorder_rotary(self.name, values, spec)

    def _codes(self) -> QuantizedTensor:
        if isinstance(self.storage, QuantizedTensor):
            return self.storage
        if self.kind == Kind.Q8_0:
            return gguf_grid.quantize(self.tensor, "q8_0")
        if isinstance(self.storage, str) or (self.storage.bits == 4 and self.storage.symmetric):
            return gguf_grid.quantize(self.tensor, "q4_0")
        return rtn.quantize(self.tensor, self.storage)


def weights(model: VlmModel, others: Literal["f32", "f16", "q8_0", "q4_0"]) -> Iterator[Weight]:
    """Every parameter of the decoder and the factors of its rotary frequencies.

    Args:
        model: `quantized` says how some of its matrices are stored.
        others: says it of the other matrices; those whose width is no multiple of 32 are stored in float16 then.

    Raises:
        UnsupportedError: GGUF has no name for a tensor, or its blocks cannot hold what `quantized` asks for.
    """
    state = model.decoder.state_dict()
    for source in model.quantized:
        if source not in state:
            raise UnsupportedError("the decoder has no such matrix to quantize", source, _HINT)
    for source, tensor in state.items():
        name = tensor_name(source)
        if name is None:
            raise UnsupportedError("GGUF has no name for this tensor", source)
        yield Weight(source, name, tensor, _storage(model, source, tensor, others))
    factors = rope_factors(model.spec.decoder)
    if factors is not None:
        yield Weight("rope_scaling", "rope_freqs.weight", factors, "f32")


def _storage(model: VlmModel, source: str, tensor: Tensor, others: Literal["f32", "f16", "q8_0", "q4_0"]) -> Storage:
    if tensor.dim() == 1:
        return "f32"
    asked = model.quantized.get(source)
    if asked is None:
        return others if others in ("f32", "f16") or tensor.shape[1] % gguf_grid.BLOCK == 0 else "f16"
    if isinstance(asked, QuantizedTensor):
        reason = gguf_grid.misfit(asked)
    else:
        reason = gguf_grid.scheme_misfit(asked, tensor.shape[1])
    if reason is not None:
        raise UnsupportedError(f"GGUF blocks cannot hold this matrix: {reason}", source, _HINT)
    return asked
