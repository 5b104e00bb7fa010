"""The decoder graph: one description for every family, written in a dialect's steps.

In: a `Decoder` (weights in any float dtype, perhaps memory-mapped), the precision, and where its embedding table was
written. Out: nodes and tensors in a graph with the inputs and outputs that onnx-community models use. Each branch below
is a field of `DecoderSpec`. Matrices are converted one at a time. A `Fusion` is such layers without norm and head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgevlm.exporters.onnx.dialect import Dialect
from edgevlm.exporters.onnx.table import StoredTable
from edgevlm.exporters.onnx.token_drop import Seen
from edgevlm.models.decoder import Decoder, DecoderLayer, SwiGLU
from edgevlm.models.fusion import Fusion
from edgevlm.quant.schemes import Scheme, StoredMatrix, TensorRole, scheme_for, store
from edgevlm.quant.tensor import QuantizedTensor, QuantScheme, stack
from edgevlm.recipe import Precision

Float32 = NDArray[np.float32]
#: How a tensor is stored, from its path, role and input channels, and the precision asked for.
SchemeChoice: TypeAlias = Callable[[str, TensorRole, int, Precision], Scheme]


class DecoderBuilder:
    """Adds a decoder, or the layers of a fusion, to a dialect's graph, layer by layer.

    `quantized` says of some matrices, by their parameters' names, how they are stored; `precision` says it of others,
    by way of `scheme`.
    """

    def __init__(
        self,
        decoder: Decoder | Fusion,
        dialect: Dialect,
        precision: Precision,
        quantized: Mapping[str, QuantizedTensor | QuantScheme] | None = None,
        scheme: SchemeChoice = scheme_for,
    ) -> None:
        self.decoder = decoder
        self.layers = [layer for layer in decoder.layers if isinstance(layer, DecoderLayer)]
        self.spec = decoder.spec
        self.dialect = dialect
        self.precision = precision
        self.quantized = quantized or {}
        self.scheme = scheme
        #: Queries, keys and values of the layer at hand, before the rotation, side by side in one or apart.
        self._projections: tuple[str, ...] = ()

    def build(self, table: StoredTable, done: Callable[[int], None] = lambda _index: None) -> None:
        """The whole graph of a decoder; `done` is called with the index of each layer that is in it."""
        x, normed = self.begin()
        for index in range(len(self.layers)):
            x, normed = self.layer(index, x, normed)
            done(index)
        self.head(normed, table)

    def begin(self) -> tuple[str, str]:
        """Inputs and the first norm; returns the residual stream and its normalised form."""
        x = self.dialect.inputs()
        norm = self.layers[0].input_layernorm
        return x, self.dialect.norm(x, self.spec.norm, *_affine(norm), self.spec.norm_eps, "layers.0.input_layernorm")

    def layer(self, index: int, x: str, normed: str) -> tuple[str, str]:
        """One layer, and the norm that follows it (the next layer's, or the decoder's; a fusion has none).

        In the last layer only the positions whose results are wanted go on after attention.
        """
        spec, dialect, layer = self.spec, self.dialect, self.layers[index]
        path, final = f"layers.{index}", index == len(self.layers) - 1
        attention = self._attention(index, layer, normed)
        if final:
            attention = dialect.keep_last(attention, f"{path}.kept.attention")
            x = dialect.keep_last(x, f"{path}.kept.residual")
            if spec.residual == "parallel":
                normed = dialect.keep_last(normed, f"{path}.kept.normed")
        attention = self._product(attention, f"{path}.self_attn.o_proj", layer.self_attn.o_proj)
        if isinstance(branch_norm := layer.attention_branch_norm, nn.RMSNorm):
            eps = branch_norm.eps
            assert eps is not None
            attention = dialect.norm(attention, "rms", *_affine(branch_norm), eps, f"{path}.attention_branch_norm")
        if spec.residual == "parallel":
            x = dialect.add(x, attention, f"{path}.attention_sum")
        else:
            norm, name = layer.post_attention_layernorm, f"{path}.post_attention_layernorm"
            x, normed = dialect.add_norm(x, attention, spec.norm, *_affine(norm), spec.norm_eps, name)
        mlp = self._mlp(path, layer, normed)
        if not final:
            norm, name = self.layers[index + 1].input_layernorm, f"layers.{index + 1}.input_layernorm"
        elif isinstance(self.decoder, Fusion):
            return dialect.add(x, mlp, f"{path}.sum"), ""
        else:
            norm, name = self.decoder.norm, "norm"
        x, normed = dialect.add_norm(x, mlp, spec.norm, *_affine(norm), spec.norm_eps, name)
        stage = spec.token_drop.stage_behind(index) if spec.token_drop else None
        return (x, normed) if stage is None else self._drop_tokens(index, stage, x, normed)

    def _drop_tokens(self, index: int, stage: int, x: str, normed: str) -> tuple[str, str]:
        """A layer's results, of the tokens that go on behind a stage."""
        assert isinstance(self.decoder, Decoder)
        last = _affine(self.decoder.norm)

        def norm(states: str) -> str:
            return self.dialect.norm(states, self.spec.norm, *last, self.spec.norm_eps, f"drop.{stage + 1}.norm")

        return self.dialect.drop_tokens(stage, Seen(index, self._projections, x, norm), normed)

    def head(self, normed: str, table: StoredTable) -> None:
        """Logits and the outputs; a tied head reads the bytes of `table`."""
        assert isinstance(self.decoder, Decoder)
        if self.spec.tied_embeddings:
            self.dialect.tied_head(normed, table, None, self.dialect.logits)
        else:
            self._linear(normed, self.dialect.logits, ("lm_head", self.decoder.lm_head), role="head")
        self.dialect.outputs()

    def _attention(self, index: int, layer: DecoderLayer, normed: str) -> str:
        spec, dialect, attention = self.spec, self.dialect, layer.self_attn
        path = f"layers.{index}.self_attn"
        names = (f"{path}.q_proj", f"{path}.k_proj", f"{path}.v_proj")
        projections = tuple(zip(names, (attention.q_proj, attention.k_proj, attention.v_proj), strict=True))
        if spec.qk_norm == "none" and not spec.rope_sections and self._together(*names):
            fused = self._linear(normed, f"{path}.qkv_proj", *projections)
            self._projections = (fused,)
            return dialect.attention(fused, "", "", index, f"{path}.mixed")
        query, key, value = (self._product(normed, *each) for each in projections)
        if spec.qk_norm != "none":
            for_query = (spec.num_attention_heads, spec.qk_norm, *_affine(attention.q_norm), spec.norm_eps)
            for_key = (spec.num_key_value_heads, spec.qk_norm, *_affine(attention.k_norm), spec.norm_eps)
            query = dialect.head_norm(query, *for_query, f"{path}.q_norm")
            key = dialect.head_norm(key, *for_key, f"{path}.k_norm")
        self._projections = (query, key, value)
        return dialect.attention(query, key, value, index, f"{path}.mixed")

    def _mlp(self, path: str, layer: DecoderLayer, normed: str) -> str:
        dialect, mlp = self.dialect, layer.mlp
        if isinstance(mlp, SwiGLU):
            names = (f"{path}.mlp.gate_proj", f"{path}.mlp.up_proj")
            both = tuple(zip(names, (mlp.gate_proj, mlp.up_proj), strict=True))
            if self._together(*names):
                gate, up = dialect.halves(self._linear(normed, f"{path}.mlp.gate_up_proj", *both), f"{path}.mlp")
            else:
                gate, up = (self._product(normed, *each) for each in both)
            gated = dialect.multiply(dialect.silu(gate, f"{path}.mlp.silu"), up, f"{path}.mlp.gated")
            return self._product(gated, f"{path}.mlp.down_proj", mlp.down_proj)
        hidden = dialect.gelu_tanh(self._product(normed, f"{path}.mlp.fc1", mlp.fc1), f"{path}.mlp.gelu")
        return self._product(hidden, f"{path}.mlp.fc2", mlp.fc2)

    def _product(self, x: str, path: str, layer: nn.Linear) -> str:
        """The product of one layer, named after its path."""
        return self._linear(x, path, (path, layer))

    def _together(self, *paths: str) -> bool:
        """Whether matrices with the same inputs are stored alike, so that they can be one product."""
        schemes = [self.quantized.get(f"{path}.weight") for path in paths]
        return len({each.scheme if isinstance(each, QuantizedTensor) else each for each in schemes}) == 1

    def _linear(self, x: str, name: str, *layers: tuple[str, nn.Linear], role: TensorRole = "linear") -> str:
        """One product for layers, each with its path, that share their input and scheme, outputs side by side."""
        bias = None
        if layers[0][1].bias is not None:
            bias = to_float32(torch.cat([layer.bias for _, layer in layers]))
        return self.dialect.linear(x, self._matrix(layers, role), bias, name)

    def _matrix(self, layers: Sequence[tuple[str, nn.Linear]], role: TensorRole) -> StoredMatrix:
        chosen = [self.quantized.get(f"{path}.weight") for path, _ in layers]
        given = [each for each in chosen if isinstance(each, QuantizedTensor)]
        if given:
            return stack(given)
        weight = layers[0][1].weight if len(layers) == 1 else torch.cat([layer.weight for _, layer in layers])
        asked = chosen[0] if isinstance(chosen[0], QuantScheme) else None
        path = f"{layers[0][0]}.weight"
        return store(weight, asked or self.scheme(path, role, weight.shape[1], self.precision))


def to_float32(tensor: Tensor) -> Float32:
    """A parameter as a float32 array."""
    array: Float32 = tensor.detach().float().contiguous().numpy()
    return array


def _affine(norm: nn.Module) -> tuple[Float32, Float32 | None]:
    """Weight and bias of a norm."""
    bias = getattr(norm, "bias", None)
    weight = norm.weight
    assert isinstance(weight, Tensor)
    return to_float32(weight), to_float32(bias) if isinstance(bias, Tensor) else None
