"""Keys and values in few bits: nearly the same answers from less memory, and clear refusals where it cannot be."""

from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from gguf_models import LLAMA, QWEN2, make_model, write_tokenizer
from tiny import tiny_bundle, tiny_model

import edgevlm
from edgevlm.errors import InputError
from edgevlm.exporters.gguf.exporter import export
from edgevlm.runtimes.base import EngineOptions, Float32, KvCache, Segment
from edgevlm.runtimes.llama_cpp import LlamaCppDecoder
from edgevlm.runtimes.torch import TorchDecoder

#: llama.cpp multiplies heads of 64 channels by a Hadamard matrix before it narrows them, and leaves others as they are.
HEADS = {size: replace(LLAMA, head_dim=size, rotary_dim=size) for size in (32, 64)}
NARROW: tuple[tuple[KvCache, float], ...] = (("q8_0", 8.5), ("q4_0", 4.5))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cache")
    files = write_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    for name, spec in {"16": QWEN2, **{str(size): spec for size, spec in HEADS.items()}}.items():
        (out / name).mkdir()
        export(make_model(spec, files), out / name, gguf_type="f32", progress=lambda *_: None)
    return out


def prompt() -> list[Segment]:
    random = np.random.default_rng(0)
    rows = random.standard_normal((200, LLAMA.hidden_size)).astype(np.float32)
    return [random.integers(0, LLAMA.vocab_size, 100).astype(np.int32), rows]


def answers(folder: Path, head: int, kv_cache: KvCache) -> tuple[Float32, int, int]:
    """Logits of a long prompt and of three tokens behind it; bytes of the cache as told, and as llama.cpp saves it."""
    engine = LlamaCppDecoder(folder / str(head) / "model-f32.gguf", HEADS[head], EngineOptions(1, 0, kv_cache=kv_cache))
    logits = [engine.prefill(prompt()), *(engine.decode(token).copy() for token in (5, 700, 9))]
    saved = engine._library.llama_state_seq_get_size(engine._context, 0)
    told = engine.cache_bytes
    assert engine.stats().details["cache"].startswith("f16" if kv_cache == "auto" else kv_cache)
    engine.close()
    return np.stack(logits), told, saved


@pytest.mark.parametrize("head", HEADS)
def test_narrow_caches_answer_nearly_alike_from_less_memory(folder: Path, head: int) -> None:
    full, bytes_of_full, saved_of_full = answers(folder, head, "f16")
    usual, *_ = answers(folder, head, "auto")
    np.testing.assert_array_equal(usual, full)
    errors = {}
    for kv_cache, bits in NARROW:
        logits, told, saved = answers(folder, head, kv_cache)
        errors[kv_cache] = float(np.linalg.norm(logits - full) / np.linalg.norm(full))
        assert told == pytest.approx(bytes_of_full * bits / 16)
        assert saved == pytest.approx(saved_of_full * bits / 16, rel=0.1)  # a few kilobytes are not of numbers
    assert 0 < errors["q8_0"] < 0.01
    assert errors["q8_0"] < errors["q4_0"] < 0.15


def test_heads_that_blocks_do_not_divide_are_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="32 channels of a head, and the heads have 16"):
        LlamaCppDecoder(folder / "16" / "model-f32.gguf", QWEN2, EngineOptions(1, kv_cache="q8_0"))


def test_engines_without_a_choice_say_so(tmp_path: Path) -> None:
    model = tiny_model()
    tiny_bundle(model, tmp_path / "onnx")
    with pytest.raises(InputError, match="ONNX Runtime cannot store keys and values as q8_0"):
        edgevlm.load(tmp_path / "onnx", vision_engine="onnxruntime", kv_cache="q8_0")
    with pytest.raises(InputError, match="torch cannot store"):
        TorchDecoder(model, EngineOptions(kv_cache="q4_0"))
    with pytest.raises(InputError, match=f"one of: {', '.join(get_args(KvCache))}") as caught:
        edgevlm.load(tmp_path / "onnx", kv_cache="q5_0")  # type: ignore[arg-type]
    assert caught.value.where == "kv_cache"
