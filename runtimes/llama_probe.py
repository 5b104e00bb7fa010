"""Is this build of llama.cpp healthy on this CPU? A tiny Q4_0 model, made here, tells.

llama.cpp repacks 4-bit weights for the widest instructions it finds (AMX, AVX-512, dot products of ARM), and those
paths are where a build that does not fit the CPU or was miscompiled crashes or errs. The probe runs a prefill and a
step through them and through the plain kernels, and compares. Run it in a child: a crash is one of its answers.
"""

from __future__ import annotations

import ctypes
import struct
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from edgevlm.child import Json, Send
from edgevlm.errors import EngineError
from edgevlm.runtimes.base import Float32
from edgevlm.runtimes.llama_cpp import build_flags, load_library

_VOCABULARY, _WIDTH, _FEED_FORWARD, _HEADS = 256, 256, 512, 4
_PROMPT = 64
_GGML_F32, _GGML_Q4_0 = 0, 2
_UINT32, _FLOAT32, _STRING = 4, 6, 8
_ALIGNMENT = 32
_Q4_0_BLOCK = np.dtype([("scale", "<f2"), ("codes", "u1", 16)])


def probe(send: Send, repack: bool) -> Json:  # noqa: ARG001 (the signature of a child's function)
    """Child entry point: version, build flags, and, where `repack`, the cosine between repacked and plain logits."""
    library = load_library()
    with tempfile.TemporaryDirectory(prefix="edgevlm-probe-") as folder:
        path = Path(folder) / "probe.gguf"
        path.write_bytes(probe_model())
        plain = _logits(library, path, repack=False)
        answer: dict[str, Any] = {"version": library.__version__, "flags": build_flags(library)}
        if repack:
            repacked = _logits(library, path, repack=True)
            norms = float(np.linalg.norm(plain) * np.linalg.norm(repacked))
            answer["agreement"] = float((plain * repacked).sum()) / norms
    return answer


def _logits(library: Any, path: Path, *, repack: bool) -> Float32:
    """Logits `[2, V]` after a prompt and after one more token."""
    parameters = library.llama_model_default_params()
    parameters.use_extra_bufts = repack
    model = library.llama_model_load_from_file(str(path).encode(), parameters)
    if not model:
        raise EngineError("llama.cpp cannot load the probe model", "llama-cpp-python")
    settings = library.llama_context_default_params()
    settings.n_ctx = settings.n_batch = settings.n_ubatch = 2 * _PROMPT
    settings.n_threads = settings.n_threads_batch = 1
    context = library.llama_init_from_model(model, settings)
    if not context:
        raise EngineError("llama.cpp cannot make a context", "llama-cpp-python")
    rows = []
    for tokens in (range(_PROMPT), [7]):
        ids = (ctypes.c_int32 * len(tokens))(*tokens)
        if library.llama_decode(context, library.llama_batch(n_tokens=len(ids), token=ids)) != 0:
            raise EngineError("llama_decode failed on the probe model", "llama-cpp-python")
        rows.append(np.ctypeslib.as_array(library.llama_get_logits(context), (_VOCABULARY,)).copy())
    library.llama_free(context)
    library.llama_model_free(model)
    return np.stack(rows)


def probe_model() -> bytes:
    """A GGUF (version 3) of one Llama layer with random Q4_0 weights and no vocabulary; 300 kB."""
    random = np.random.default_rng(0)
    shapes = {
        "token_embd": (_VOCABULARY, _WIDTH),
        "output": (_VOCABULARY, _WIDTH),
        "output_norm": (_WIDTH,),
        "blk.0.attn_norm": (_WIDTH,),
        "blk.0.attn_q": (_WIDTH, _WIDTH),
        "blk.0.attn_k": (_WIDTH, _WIDTH),
        "blk.0.attn_v": (_WIDTH, _WIDTH),
        "blk.0.attn_output": (_WIDTH, _WIDTH),
        "blk.0.ffn_norm": (_WIDTH,),
        "blk.0.ffn_gate": (_FEED_FORWARD, _WIDTH),
        "blk.0.ffn_up": (_FEED_FORWARD, _WIDTH),
        "blk.0.ffn_down": (_WIDTH, _FEED_FORWARD),
    }
    keys = _metadata()
    head = b"GGUF" + struct.pack("<IQQ", 3, len(shapes), len(keys)) + b"".join(keys)
    data = b""
    for name, shape in shapes.items():
        kind = _GGML_F32 if len(shape) == 1 else _GGML_Q4_0
        head += _string(f"{name}.weight") + struct.pack("<I", len(shape))
        head += struct.pack(f"<{len(shape)}Q", *reversed(shape)) + struct.pack("<IQ", kind, len(data))
        data += np.ones(shape, "<f4").tobytes() if kind == _GGML_F32 else _q4_0(random, shape)
    return head + bytes(-len(head) % _ALIGNMENT) + data


def _metadata() -> list[bytes]:
    def entry(key: str, kind: int, value: bytes) -> bytes:
        return _string(key) + struct.pack("<I", kind) + value

    sizes = {
        "vocab_size": _VOCABULARY,
        "context_length": 2 * _PROMPT,
        "embedding_length": _WIDTH,
        "feed_forward_length": _FEED_FORWARD,
        "block_count": 1,
        "attention.head_count": _HEADS,
    }
    return [
        entry("general.architecture", _STRING, _string("llama")),
        entry("tokenizer.ggml.model", _STRING, _string("no_vocab")),
        entry("llama.attention.layer_norm_rms_epsilon", _FLOAT32, struct.pack("<f", 1e-6)),
        *(entry(f"llama.{key}", _UINT32, struct.pack("<I", value)) for key, value in sizes.items()),
    ]


def _string(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def _q4_0(random: np.random.Generator, shape: tuple[int, ...]) -> bytes:
    """Random Q4_0 blocks (32 weights: a float16 scale and 16 bytes of codes) of variance about 1 / width."""
    blocks = np.empty(shape[0] * shape[1] // 32, _Q4_0_BLOCK)
    blocks["scale"] = 0.2 / shape[1] ** 0.5
    blocks["codes"] = random.integers(0, 256, blocks["codes"].shape, np.uint8)
    return blocks.tobytes()
