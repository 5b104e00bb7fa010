"""Engines without a runtime: their output depends on all that is in the cache, so a wrong cache shows in the answer."""

import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np

from edgevlm.runtimes.base import EngineStats, Float32, Int32, Segment
from edgevlm.session import Session
from edgevlm.spec import (
    DecoderSpec,
    FastViTHDSpec,
    FusionSpec,
    MlpProjectorSpec,
    ModelSpec,
    PreprocessSpec,
    PromptSpec,
    VisionSpec,
)
from edgevlm.tokenizer import Tokenizer

#: FastVLM's, whose module would import torch.
CHAT_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HIDDEN, TOKENS, VOCAB, STOP = 8, 4, 1024, 1022
#: Rows of an image that the fake fusion keeps.
FUSED = 1
SPEC = ModelSpec(
    family="fastvlm",
    name="fake",
    vision=VisionSpec(FastViTHDSpec(), MlpProjectorSpec(8), 64, TOKENS),
    decoder=DecoderSpec("qwen2", VOCAB, HIDDEN, 8, 1, 1, 1, 8, 8, 1e4, 1e-6, 512),
    preprocess=PreprocessSpec(64),
    prompt=PromptSpec(CHAT_TEMPLATE, stop_token_ids=(STOP,), default_system="You are a helpful assistant."),
)


class FakeVision:
    """Embeddings that depend on the pixels; counts the images."""

    def __init__(self) -> None:
        self.encoded = 0
        self.closed = False

    def encode(self, pixels: Float32) -> Float32:
        self.encoded += len(pixels)
        rows = np.arange(TOKENS, dtype=np.float32)[:, None] + pixels[0].mean()
        return np.broadcast_to(rows, (TOKENS, HIDDEN)).astype(np.float32)[None]

    def stats(self) -> EngineStats:
        return EngineStats("fake vision")

    def close(self) -> None:
        self.closed = True


class FakeFusion:
    """Each row gets the mean of all rows up to it, so that every row depends on the image and the text before it."""

    def __init__(self) -> None:
        self.runs = 0
        self.closed = False

    def fuse(self, image: Float32, text: Float32) -> Float32:
        self.runs += 1
        rows = np.concatenate((image, text))
        means = np.cumsum(rows, axis=0) / np.arange(1, len(rows) + 1)[:, None]
        result: Float32 = means[-(FUSED + len(text)) :].astype(np.float32)
        return result

    def stats(self) -> EngineStats:
        return EngineStats("fake fusion")

    def close(self) -> None:
        self.closed = True


class FakeDecoder:
    """The next token is a letter chosen by a checksum of the cache, or the next of `script`."""

    def __init__(self, script: list[int] | None = None, context_length: int = 512) -> None:
        self.vocab_size, self.context_length = VOCAB, context_length
        self.position = 0
        self.cache: list[bytes] = []
        self.prefilled: list[int] = []
        self.script = script
        self.fail = False
        self.closed = False

    def prefill(self, segments: list[Segment]) -> Float32:
        rows = [row.tobytes() for segment in segments for row in np.asarray(segment)]
        self.prefilled.append(len(rows))
        if self.fail:
            self.cache += rows[: len(rows) // 2]
            raise RuntimeError("engine broke")
        self.cache += rows
        assert len(self.cache) <= self.context_length
        return self._logits()

    def embed(self, ids: Int32) -> Float32:
        """Rows that are no rows of an image."""
        return np.repeat(ids[:, None].astype(np.float32) + 0.5, HIDDEN, axis=1)

    def decode(self, token: int) -> Float32:
        self.cache.append(np.int32(token).tobytes())
        assert len(self.cache) <= self.context_length
        return self._logits()

    def _logits(self) -> Float32:
        self.position = len(self.cache)
        logits = np.zeros(self.vocab_size, np.float32)
        token = self.script.pop(0) if self.script else 65 + zlib.crc32(b"".join(self.cache)) % 20
        logits[token] = 1
        return logits

    def reset(self, keep: int = 0) -> None:
        assert 0 <= keep <= len(self.cache)
        del self.cache[keep:]
        self.position = keep

    def stats(self) -> EngineStats:
        return EngineStats("fake decoder")

    def close(self) -> None:
        self.closed = True


def tokenizer_file(folder: Path) -> Path:
    """The zoo's tokenizer in `folder`."""
    path = folder / "tokenizer.json"
    if not path.exists():
        from edgevlm.zoo.tokenizer import build_tokenizer

        build_tokenizer().save(str(path))
    return path


def fake_session(folder: Path, decoder: FakeDecoder | None = None) -> tuple[Session, FakeVision, FakeDecoder]:
    """A session over fake engines with the zoo's tokenizer, which is written to `folder`."""
    path = tokenizer_file(folder)
    vision, decoder = FakeVision(), decoder or FakeDecoder()
    return Session(SPEC, Tokenizer(path), vision, decoder), vision, decoder


def fused_session(folder: Path) -> tuple[Session, FakeVision, FakeFusion, FakeDecoder]:
    """The same with a fusion, one image a conversation."""
    path = tokenizer_file(folder)
    spec = replace(SPEC, fusion=FusionSpec(1, FUSED), prompt=replace(SPEC.prompt, max_images=1))
    vision, fusion, decoder = FakeVision(), FakeFusion(), FakeDecoder()
    return Session(spec, Tokenizer(path), vision, decoder, fusion=fusion), vision, fusion, decoder
