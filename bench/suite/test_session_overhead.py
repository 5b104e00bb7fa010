"""What the session adds to each generated token over the engine's own step: at most 0.3 ms at a full-size vocabulary.

The engine is fake and its step takes no time, so the gap between tokens is the session's alone.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgevlm.answer import GenerationArguments
from edgevlm.models.fastvlm import CHAT_TEMPLATE
from edgevlm.runtimes.base import EngineStats, Float32, Int32, Segment
from edgevlm.session import Session
from edgevlm.spec import DecoderSpec, FastViTHDSpec, MlpProjectorSpec, ModelSpec, PreprocessSpec, PromptSpec, VisionSpec
from edgevlm.tokenizer import Tokenizer
from edgevlm.zoo.tokenizer import build_tokenizer

VOCABULARY = 151_936
TOKENS = 128
LIMIT_MS = 0.3
SPEC = ModelSpec(
    family="fastvlm",
    name="overhead",
    vision=VisionSpec(FastViTHDSpec(), MlpProjectorSpec(8), 64, 1),
    decoder=DecoderSpec("qwen2", VOCABULARY, 8, 8, 1, 1, 1, 8, 8, 1e4, 1e-6, 4096),
    preprocess=PreprocessSpec(64),
    prompt=PromptSpec(CHAT_TEMPLATE),
)
WAYS: dict[str, GenerationArguments] = {
    "greedy": {"max_tokens": TOKENS},
    "greedy with stop strings": {"max_tokens": TOKENS, "stop": ["###", "\n\n"]},
    "temperature 0.2": {"max_tokens": TOKENS, "temperature": 0.2, "seed": 0},
    "temperature 0.7": {"max_tokens": TOKENS, "temperature": 0.7, "seed": 0},
    "temperature 0.7, top-p 0.9": {"max_tokens": TOKENS, "temperature": 0.7, "top_p": 0.9, "seed": 0},
    "temperature 1, top-k 40": {"max_tokens": TOKENS, "temperature": 1.0, "top_k": 40, "seed": 0},
}


class NoVision:
    """Never asked for anything."""

    def encode(self, pixels: Float32) -> Float32:
        raise NotImplementedError

    def stats(self) -> EngineStats:
        return EngineStats("none")

    def close(self) -> None:
        pass


class InstantDecoder:
    """Returns logits prepared beforehand: a few likely tokens over a long tail, as a language model's are."""

    def __init__(self) -> None:
        self.vocab_size, self.context_length, self.position = VOCABULARY, 4096, 0
        random = np.random.default_rng(0)
        self._logits = random.normal(0, 2, (8, VOCABULARY)).astype(np.float32)
        for row in self._logits:
            row[random.integers(0, 1000, 20)] += random.uniform(10, 16, 20)

    def prefill(self, segments: list[Segment]) -> Float32:
        self.position += sum(len(segment) for segment in segments)
        return self._row()

    def embed(self, ids: Int32) -> Float32:
        return np.zeros((len(ids), 1), np.float32)

    def decode(self, token: int) -> Float32:
        del token
        self.position += 1
        return self._row()

    def _row(self) -> Float32:
        row: Float32 = self._logits[self.position % 8]
        return row

    def reset(self, keep: int = 0) -> None:
        self.position = keep

    def stats(self) -> EngineStats:
        return EngineStats("instant")

    def close(self) -> None:
        pass


@pytest.mark.parametrize("way", WAYS)
def test_session_overhead(benchmark: Any, tmp_path: Path, way: str) -> None:
    build_tokenizer().save(str(tmp_path / "tokenizer.json"))
    session = Session(SPEC, Tokenizer(tmp_path / "tokenizer.json"), NoVision(), InstantDecoder())
    gaps: list[float] = []

    def generate() -> None:
        answer = session.generate(None, "What is shown?", **WAYS[way])
        gaps.extend(answer.stats.token_gaps_ms)

    benchmark.pedantic(generate, rounds=5, warmup_rounds=1)
    median = float(np.median(gaps))
    benchmark.extra_info.update(way=way, overhead_ms_per_token=median, limit_ms=LIMIT_MS)
    print(f"session overhead, {way}: {1000 * median:.0f} microseconds per token (limit {1000 * LIMIT_MS:.0f})")
