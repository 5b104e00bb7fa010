"""The numbers that describe a vision-language model, and nothing else.

A `ModelSpec` is what a family's loader finds out about a checkpoint, what the exporters read, what a bundle's manifest
stores and what the session on the device needs. It holds no tensors and imports nothing, so both halves share it.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass, field
from typing import Any, Literal

from edgevlm.errors import InputError


@dataclass(frozen=True)
class DecoderSpec:
    """One causal decoder. Widths in channels; `rotary_dim` counts the leading channels of a head that rotate.

    `architecture` names the decoder for formats that need a name (GGUF's `general.architecture`): `qwen2`, `llama`,
    `phi2`.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rotary_dim: int
    rope_theta: float
    norm_eps: float
    max_position_embeddings: int
    norm: Literal["rms", "layer"] = "rms"
    residual: Literal["sequential", "parallel"] = "sequential"
    mlp: Literal["swiglu", "gelu_new"] = "swiglu"
    qkv_bias: bool = False
    attention_out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: Literal["none", "rms", "layer"] = "none"
    post_attention_norm: Literal["none", "rms"] = "none"
    tied_embeddings: bool = True
    head_bias: bool = False

    @property
    def query_size(self) -> int:
        """Channels of all query heads together."""
        return self.num_attention_heads * self.head_dim

    @property
    def key_value_size(self) -> int:
        """Channels of all key (or value) heads together."""
        return self.num_key_value_heads * self.head_dim


@dataclass(frozen=True)
class FastViTHDSpec:
    """The FastViTHD encoder (FastVLM, arXiv 2412.13303): three convolutional stages, then two with attention."""

    depths: tuple[int, ...] = (2, 12, 24, 4, 2)
    dims: tuple[int, ...] = (96, 192, 384, 768, 1536)
    mlp_ratio: int = 4
    head_dim: int = 32
    squeeze_channels: int = 192

    @property
    def output_size(self) -> int:
        """Channels of an image feature before the projector."""
        return 2 * self.dims[-1]

    @property
    def stride(self) -> int:
        """Input pixels per visual token along one axis."""
        return 1 << (len(self.dims) + 1)


@dataclass(frozen=True)
class VisionSpec:
    """The vision side: square input of `image_size` pixels, `image_tokens` embeddings out of the projector."""

    encoder: FastViTHDSpec
    image_size: int
    image_tokens: int
    projector_hidden_size: int


@dataclass(frozen=True)
class PreprocessSpec:
    """From a decoded RGB image to pixels: `pad` to a square or `crop` its centre, resize, scale by 1/255, normalise."""

    image_size: int
    fit: Literal["pad", "crop"] = "pad"
    pad_colour: tuple[int, int, int] = (0, 0, 0)
    resample: Literal["bicubic", "bilinear"] = "bicubic"
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class PromptSpec:
    """How a conversation becomes token ids.

    `chat_template` is Jinja over `messages` (role, content as text that may hold `image_marker`) and
    `add_generation_prompt`. The rendered text is cut at each `image_marker`, every piece tokenised on its own without
    special tokens added, and image embeddings go where the marker stood. `image_token_id` stands for one image
    embedding in formats that want ids throughout; it may lie outside the vocabulary.
    """

    chat_template: str
    image_marker: str = "<image>"
    image_token_id: int = 0
    bos_token_id: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    default_system: str = ""


@dataclass(frozen=True)
class ModelSpec:
    """Everything below the loader knows about a model. `family` is for people; nothing branches on it."""

    family: str
    name: str
    vision: VisionSpec
    decoder: DecoderSpec
    preprocess: PreprocessSpec
    prompt: PromptSpec
    licence: str = "unknown"
    notes: tuple[str, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready form; `from_dict` is its inverse."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ModelSpec:
        """Read back what `to_dict` wrote.

        Raises:
            InputError: a field is missing, unknown or of the wrong type.
        """
        result = _build(cls, data, "spec")
        assert isinstance(result, ModelSpec)
        return result


def _build(annotation: Any, value: Any, path: str) -> Any:
    """Turn JSON `value` into the annotated type, checking as it goes."""
    if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
        return _build_dataclass(annotation, value, path)
    origin = typing.get_origin(annotation)
    if origin is tuple and isinstance(value, list | tuple):
        arguments = typing.get_args(annotation)
        if arguments[-1] is Ellipsis:
            arguments = arguments[:1] * len(value)
        if len(arguments) == len(value):
            return tuple(_build(a, v, f"{path}[{i}]") for i, (a, v) in enumerate(zip(arguments, value, strict=True)))
    elif origin is Literal:
        if value in typing.get_args(annotation):
            return value
    elif origin is types.UnionType:
        if value is None and type(None) in typing.get_args(annotation):
            return None
        return _build(next(a for a in typing.get_args(annotation) if a is not type(None)), value, path)
    elif annotation is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif isinstance(annotation, type) and type(value) is annotation:
        return value
    raise InputError(f"{path} has a value that does not fit: {value!r:.60}", hint="export the bundle again")


def _build_dataclass(cls: type, value: Any, path: str) -> Any:
    if not isinstance(value, dict):
        raise InputError(f"{path} must be an object", hint="export the bundle again")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    unknown = sorted(set(value) - set(fields))
    missing = sorted(
        name
        for name, f in fields.items()
        if name not in value and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    )
    if unknown or missing:
        problem = f"unknown {', '.join(unknown)}" if unknown else f"missing {', '.join(missing)}"
        raise InputError(f"{path}: {problem}", hint="export the bundle again")
    return cls(**{name: _build(hints[name], item, f"{path}.{name}") for name, item in value.items()})
