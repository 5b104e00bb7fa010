"""Published runs on named devices, as workloads of the forecast.

In: `measurements.yaml`: models in numbers, how they were stored, and what each run took. Out: `Row`s.
"""

from __future__ import annotations

from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field

from edgevlm.spec import DecoderSpec
from edgevlm.targets.decoder_cost import cache_bytes, embedding_parameters, layer_parameters, prefill_flops
from edgevlm.targets.roofline import Weights, Workload

PATH = Path(__file__).parent / "measurements.yaml"
#: Positions of a decode step where a run does not tell its prompt.
_USUAL_PROMPT = 292


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Model(_Part):
    """A measured model: its decoder's sizes (none for a vision tower alone) and the operations of its vision tower."""

    layers: int = 0
    hidden: int = 0
    intermediate: int = 0
    heads: int = 1
    kv_heads: int = 1
    head_dim: int = 0
    vocab: int = 0
    vision_gflop: float = 0
    vision_parameters: int = 0


class Storage(_Part):
    """How a run stored its weights and computed."""

    layer_bits: float
    head_bits: float
    compute: str
    cache_bytes: float


class Row(_Part):
    """One run. `held_back` rows check the fit."""

    target: str
    runtime: str
    model: str
    precision: str
    source: str
    prompt_tokens: int = Field(default=_USUAL_PROMPT, gt=0)
    vision_gflop: float | None = None
    vision_ms: float | None = None
    prefill_ms: float | None = None
    tokens_per_s: float | None = None
    peak_mb: float | None = None
    held_back: bool = False


class Assumed(_Part):
    """Constants that no run tells, and whose are taken."""

    of: str
    runtime: str
    like: str
    like_runtime: str
    why: str


class Measurements(_Part):
    """The file."""

    models: dict[str, Model]
    precisions: dict[str, Storage]
    sources: dict[str, str]
    rows: tuple[Row, ...]
    assumed: tuple[Assumed, ...] = ()

    def workload(self, row: Row) -> Workload:
        """What a run computed.

        Vision towers run in float16 on GPUs and in float32 on CPUs; their weights and the embedding lie in float16.
        """
        model, storage = self.models[row.model], self.precisions[row.precision]
        spec = decoder_spec(model)
        layers = model.layers * layer_parameters(spec)
        head = embedding_parameters(spec)
        read = round((layers * storage.layer_bits + head * storage.head_bits) / 8)
        table, tower = 2 * head, 2 * model.vision_parameters
        return Workload(
            weights=(
                Weights("vision", model.vision_parameters, tower, tower),
                Weights("embedding", head, table, table),
                Weights("decoder", layers + head, read, read, read),
            ),
            layers=model.layers,
            image_tokens=0,
            prompt_tokens=row.prompt_tokens,
            vision_flops=1e9 * (model.vision_gflop if row.vision_gflop is None else row.vision_gflop),
            vision_dtype="fp32" if row.runtime == "onnxruntime" or storage.compute == "int8" else "fp16",
            vision_scratch_bytes=0,
            prefill_flops=prefill_flops(spec, 0, row.prompt_tokens),
            prefill_dtype=storage.compute,
            prefill_scratch_bytes=0,
            context=row.prompt_tokens,
            cache_bytes=0,
            cache_read_bytes=cache_bytes(spec, 0, row.prompt_tokens, storage.cache_bytes),
        )


def read_measurements(path: Path = PATH) -> Measurements:
    """The file, checked."""
    return Measurements.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))


def decoder_spec(model: Model) -> DecoderSpec:
    """A Qwen decoder of these sizes; the head is the embedding."""
    return DecoderSpec(
        architecture="qwen2",
        vocab_size=model.vocab,
        hidden_size=model.hidden,
        intermediate_size=model.intermediate,
        num_hidden_layers=model.layers,
        num_attention_heads=model.heads,
        num_key_value_heads=model.kv_heads,
        head_dim=model.head_dim,
        rotary_dim=model.head_dim,
        rope_theta=1e6,
        norm_eps=1e-6,
        max_position_embeddings=32768,
    )
