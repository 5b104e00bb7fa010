"""onnxruntime-genai on the decoder of a FastVLM checkpoint: what our int4 decoder is measured against.

Its own builder makes the model (int4, blocks of 128, accuracy level 4) from the decoder's weights laid out as a Qwen2
folder; `GenaiLoop` times it in its own generator, with greedy search. Nothing else here needs onnxruntime-genai.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from edgevlm.bench.suite.decoder_rounds import Round, prompt, repeat
from edgevlm.child import Send
from edgevlm.spec import DecoderSpec

_COPIED = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")


def measure(
    send: Send, folder: str, threads: int, context: int, positions: int, rounds: int, steps: int
) -> dict[str, list[float]]:
    """Child entry point: what `decoder_rounds.measure` does, of onnxruntime-genai's model."""
    del send
    loop = GenaiLoop(Path(folder), threads, context)
    return repeat(lambda count: loop.round(prompt(positions), count), rounds, steps)


def build(source: Path, out: Path) -> Path:
    """Build the int4 model of a Qwen2 folder in `out`; returns that.

    Raises:
        CalledProcessError: the builder failed.
    """
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-m", str(source), "-o", str(out)]
    command += ["-p", "int4", "-e", "cpu", "-c", str(out.parent / "cache")]
    command += ["--extra_options", "block_size=128", "accuracy_level=4"]
    environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1"}
    subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return out


def write_qwen2(checkpoint: Path, spec: DecoderSpec, out: Path) -> None:
    """Write the decoder of an Apple-layout checkpoint as a stand-alone Qwen2 to the new folder `out`."""
    out.mkdir()
    prefixes = ("model.embed_tokens.", "model.layers.", "model.norm.", "lm_head.")
    tensors: dict[str, Tensor] = {}
    for path in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            tensors |= {name: file.get_tensor(name) for name in file.keys() if name.startswith(prefixes)}  # noqa: SIM118
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "dtype": "bfloat16",
        "hidden_act": "silu",
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.hidden_size,
        "intermediate_size": spec.intermediate_size,
        "num_hidden_layers": spec.num_hidden_layers,
        "num_attention_heads": spec.num_attention_heads,
        "num_key_value_heads": spec.num_key_value_heads,
        "rms_norm_eps": spec.norm_eps,
        "rope_theta": spec.rope_theta,
        "max_position_embeddings": spec.max_position_embeddings,
        "tie_word_embeddings": spec.tied_embeddings,
        "bos_token_id": 0,
        "eos_token_id": spec.vocab_size - 1,
    }
    (out / "config.json").write_text(json.dumps(config))
    for name in _COPIED:
        if (checkpoint / name).is_file():
            (out / name).write_bytes((checkpoint / name).read_bytes())


class GenaiLoop:
    """A loaded model; every round starts from an empty cache of `context` positions."""

    def __init__(self, folder: Path, threads: int, context: int) -> None:
        import onnxruntime_genai

        self._library: Any = onnxruntime_genai
        options = {"intra_op_num_threads": threads}
        config = self._library.Config(str(folder))
        config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        self._model = self._library.Model(config)
        self._context = context

    def round(self, ids: NDArray[np.int32], steps: int) -> Round:
        """Prefill `ids` and decode `steps` tokens; every time ends with logits or a token in our hands."""
        parameters = self._library.GeneratorParams(self._model)
        parameters.set_search_options(max_length=self._context, min_length=self._context, do_sample=False)
        generator = self._library.Generator(self._model, parameters)
        start = time.perf_counter()
        generator.append_tokens(ids[None])
        generator.get_logits()
        prefill = time.perf_counter() - start
        generator.generate_next_token()  # chooses from the prompt's logits
        gaps = []
        for _ in range(steps):
            start = time.perf_counter()
            generator.generate_next_token()
            gaps.append(1e3 * (time.perf_counter() - start))
        return Round(1e3 * prefill, gaps)
