"""Calibration samples in front of the decoder, and the walk through its layers, against the engines that answer."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from edgevlm.assembly import ImageAssembler
from edgevlm.calibration import Calibration, Sample
from edgevlm.calibration.activations import IGNORE, Activations, embed
from edgevlm.calibration.layers import walk
from edgevlm.calibration.scratch import Scratch
from edgevlm.calibration.sources import open_calibration
from edgevlm.context import Frames, Part, image_parts, segments, splice
from edgevlm.errors import InputError
from edgevlm.fusing import PromptFuser
from edgevlm.imageio import load_image
from edgevlm.models import VlmModel, load, resolve
from edgevlm.preprocess import normalise, prepare
from edgevlm.prompt import Message, PromptFormatter
from edgevlm.runtimes.base import EngineOptions
from edgevlm.runtimes.torch import TorchDecoder, TorchFusion, TorchVision
from edgevlm.tokenizer import Tokenizer
from edgevlm.zoo.synth import synth

#: Plain; positions on three axes; tiles, newlines and text between them; a fusion.
FAMILIES = ("fastvlm-0.5b", "qwen2-vl-2b", "llava-onevision-0.5b", "smolvlm-256m", "llava-mini-qwen-0.5b")


def silent(_done: float, _total: float, _what: str) -> None:
    """A progress nobody watches."""


def calibration(*samples: Sample) -> Calibration:
    return Calibration(lambda: iter(samples), len(samples))


def picture(height: int, width: int, seed: int = 0) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], VlmModel]:
    def make(name: str) -> VlmModel:
        folder = tmp_path_factory.mktemp("checkpoints") / name
        synth(name, folder, tiny=True)
        return load(folder)

    return make


def walked(model: VlmModel, activations: Activations) -> list[Tensor]:
    """Logits `[S, V]` of each sample."""
    for _ in walk(model.decoder, activations):
        pass
    decoder = model.decoder.float()
    return [decoder.head(decoder.norm(states)) for states in activations.states]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_decoder_sees_what_a_session_would_feed_it(name: str, model_of: Callable[[str], VlmModel]) -> None:
    """Logits after a prompt and its answer: the engines of a session in one piece, and the walk layer by layer."""
    model = model_of(name)
    samples = (Sample(picture(90, 130), "What is this?", "a red circle"), Sample(picture(70, 50, 1), "Why?"))
    activations = embed(model, calibration(*samples), Scratch(1 << 30), silent)
    with torch.no_grad():
        found = walked(model, activations)
    tokenizer = Tokenizer(model.tokenizer_files["tokenizer.json"])
    newline = None if model.image_newline is None else model.image_newline.float().numpy()
    assembler = ImageAssembler(model.spec, tokenizer, newline)
    formatter = PromptFormatter(model.spec.prompt, tokenizer)
    decoder = TorchDecoder(model, EngineOptions(context_length=2048))
    for sample, sequence, logits in zip(samples, activations.sequences, found, strict=True):
        image = prepare(load_image(sample.image), model.spec.preprocess)
        features = TorchVision(model).encode(normalise(image.tiles, model.spec.preprocess))
        ids = formatter.start([*formatter.system_messages(None), Message("user", sample.prompt, images=1)])
        said = tokenizer.encode(sample.answer) if sample.answer else []
        *answered, end = sequence.labels[sequence.labels != IGNORE].tolist() if said else [*said, None]
        assert answered == said
        assert end is None or end in model.spec.prompt.stop_token_ids
        parts: list[Part]
        if model.spec.fusion is None:
            parts = splice(ids, [image_parts(assembler.pieces(features, image), image.key)])
            # A part of embeddings is a piece of the image; the text between tiles is ids.
            images = sum(len(part) for part in parts if not isinstance(part, int))
        else:
            tokens = model.spec.fusion.image_tokens
            fuser = PromptFuser(model.spec.fusion, TorchFusion(model), decoder)
            parts = fuser.fuse(splice(ids, [[Frames(image.key, (features[0],), tokens)]]), reuse=False)
            images = tokens
        decoder.reset(0)
        last = decoder.prefill(segments([*parts, *said]))
        assert int(sequence.is_image.sum()) == images
        np.testing.assert_allclose(logits[-1].numpy(), last, atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_an_answer_ends_as_the_model_ends_it() -> None:
    """Chat templates close a turn with one of several stop tokens; a trained model says which."""
    model = load(resolve("zoo:nano-fastvlm"))
    assert len(model.spec.prompt.stop_token_ids) > 1
    activations = embed(model, open_calibration("scenes", 6), Scratch(1 << 30), silent)
    ends = [int(sequence.labels[-1]) for sequence in activations.sequences]
    assert [int(logits[-1].argmax()) for logits in walked(model, activations)] == ends


def test_nothing_to_calibrate_with_is_an_error(model_of: Callable[[str], VlmModel]) -> None:
    with pytest.raises(InputError, match="no calibration samples"):
        embed(model_of("fastvlm-0.5b"), calibration(), Scratch(0), silent)


def test_what_does_not_fit_into_memory_lies_on_disk(
    model_of: Callable[[str], VlmModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same numbers, in files that are gone once they are mapped."""
    model = model_of("fastvlm-0.5b")
    samples = calibration(*(Sample(picture(64, 64, seed), "What? " * 150) for seed in range(3)))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    mapped: list[int] = []
    real = torch.from_file

    def counted(name: str, **options: int) -> Tensor:
        mapped.append(options["size"])
        return real(name, **options)

    monkeypatch.setattr(torch, "from_file", counted)
    with torch.no_grad():
        held = walked(model, embed(model, samples, Scratch(1 << 30), silent))
        assert not mapped
        first = embed(model, samples, Scratch(300_000), silent)
        assert len(mapped) == 2
        spilled = walked(model, first)
    assert all(torch.equal(a, b) for a, b in zip(held, spilled, strict=True))
    assert list(tmp_path.iterdir()) == []
