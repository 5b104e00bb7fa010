"""What dropping image tokens inside the decoder saves at prefill, and what choosing them costs: CPU time of one thread.

The decoder has fastvlm-0.5b's shapes at int4, with a short vocabulary, which only the last position meets. The prompt
is 256 image tokens among 30 of text. Keeping all 256 measures the choice alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from edgevlm.bench.suite.int4_decoder import write_int4
from edgevlm.models.decoder import Decoder
from edgevlm.runtimes.base import EngineOptions, Segment
from edgevlm.runtimes.onnxruntime import OnnxRuntimeDecoder
from edgevlm.spec import DecoderSpec, DropStage, TokenDropSpec

TOKENS, KEEP = 256, 64
PLAIN = DecoderSpec("qwen2", 1024, 896, 4864, 24, 14, 2, 64, 64, 1e6, 1e-6, 4096, qkv_bias=True, tied_embeddings=False)
ROUNDS, STEPS = 6, 4


def fastv(keep: int) -> TokenDropSpec:
    return TokenDropSpec("fastv", "attention", TOKENS, (DropStage(2, keep),))


def dart(keep: int) -> TokenDropSpec:
    return TokenDropSpec("dart", "duplicate", TOKENS, (DropStage(2, keep),), image_pivots=10, text_pivots=5)


DROPS: dict[str, TokenDropSpec] = {
    "fastv, all kept": fastv(TOKENS),
    "fastv": fastv(KEEP),
    "dart, all kept": dart(TOKENS),
    "dart": dart(KEEP),
    "pyramiddrop": TokenDropSpec(
        "pyramiddrop", "attention", TOKENS, tuple(map(DropStage, (6, 12, 18), (161, 102, 64)))
    ),
}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Callable[[TokenDropSpec | None], OnnxRuntimeDecoder]:
    torch.manual_seed(0)
    weights = Decoder(PLAIN).requires_grad_(False)

    @cache
    def make(drop: TokenDropSpec | None) -> OnnxRuntimeDecoder:
        weights.spec = replace(PLAIN, token_drop=drop)
        folder = tmp_path_factory.mktemp("drop")
        write_int4(weights, folder)
        spec: Any = SimpleNamespace(decoder=weights.spec)
        return OnnxRuntimeDecoder(folder / "decoder", folder / "embed", spec, EngineOptions(1, 512))

    return make


def prompt(tokens: int) -> list[Segment]:
    """Text, an image, text."""
    rng = np.random.default_rng(0)
    image = rng.normal(size=(tokens, PLAIN.hidden_size)).astype(np.float32)
    return [rng.integers(0, 1000, 14).astype(np.int32), image, rng.integers(0, 1000, 16).astype(np.int32)]


def least(run: Callable[[], object], rounds: int) -> float:
    """Milliseconds of CPU time of the fastest round."""
    times = []
    for _ in range(rounds):
        begin = time.process_time()
        run()
        times.append(1000 * (time.process_time() - begin))
    return min(times)


@pytest.mark.parametrize("name", DROPS)
def test_prefill_and_decode(
    benchmark: Any,
    capsys: pytest.CaptureFixture[str],
    name: str,
    engine: Callable[[TokenDropSpec | None], OnnxRuntimeDecoder],
) -> None:
    plain, dropping = engine(None), engine(DROPS[name])

    def prefill(decoder: OnnxRuntimeDecoder, tokens: int = TOKENS) -> None:
        decoder.reset()
        decoder.prefill(prompt(tokens))

    whole, fewer = least(lambda: prefill(plain), ROUNDS), least(lambda: prefill(dropping), ROUNDS)
    steps = [least(lambda each=each: each.decode(5), ROUNDS * STEPS) for each in (plain, dropping)]  # type: ignore[misc]
    in_front = least(lambda: prefill(plain, KEEP), ROUNDS)
    benchmark.extra_info[name] = {"prefill_ms": [whole, fewer, in_front], "decode_ms": steps}
    benchmark.pedantic(prefill, (dropping,), rounds=1)
    with capsys.disabled():
        print(
            f"\n  {name}: prefill {whole:.0f} to {fewer:.0f} ms ({whole / fewer:.2f}x; {KEEP} tokens in front of the "
            f"decoder {whole / in_front:.2f}x), decode {steps[0]:.1f} to {steps[1]:.1f} ms"
        )
