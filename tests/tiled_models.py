"""Random checkpoints of the families that cut images into tiles, beside transformers' own model and processor.

What is compared: the prompt's ids, the logits of every position, and the greedy answers of bundles.
"""

import json
import sys
import types
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tokenizers import AddedToken
from torch import Tensor

from edgevlm.assembly import ImageAssembler
from edgevlm.context import image_parts, segments, splice
from edgevlm.imageio import load_image
from edgevlm.models.vlm import VlmModel
from edgevlm.preprocess import normalise, prepare
from edgevlm.prompt import Message, PromptFormatter
from edgevlm.session import load as load_session
from edgevlm.tokenizer import Tokenizer
from edgevlm.zoo.tokenizer import build_tokenizer

# Newer than this torch, torchvision's operator registration fails on import; the Pillow processors do not need it.
sys.modules.setdefault("torchvision._meta_registrations", types.ModuleType("_meta_registrations"))

QUESTION = "What colour is the circle?"
#: Sizes of the images of a question: landscape, portrait and tiny alone, then two of different shapes.
QUESTIONS = {
    "landscape": [(150, 70)],
    "portrait": [(40, 100)],
    "tiny": [(2, 3)],
    "two": [(120, 60), (33, 64)],
}
#: These and more, for prompts that are compared without a bundle.
SHAPES = {**QUESTIONS, "square": [(64, 64)], "wide": [(900, 11)], "three": [(9, 400), (32, 32), (150, 40)]}
TOKENS = 4
TEXT = {
    "vocab_size": 1104,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "pad_token_id": 1020,
    "bos_token_id": 1020,
    "eos_token_id": 1020,
}


@dataclass(frozen=True)
class Oracle:
    """A checkpoint's folder, and what transformers has for it."""

    folder: Path
    model: Any
    processor: Any


def fast_tokenizer(folder: Path, special: Sequence[str], **named: str) -> Any:
    """Write tokenizer files with these special tokens; returns transformers' tokenizer with the named attributes."""
    from transformers import PreTrainedTokenizerFast

    backend = build_tokenizer()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 512}))
    return PreTrainedTokenizerFast(tokenizer_object=backend, extra_special_tokens=named, pad_token="<|endoftext|>")


def without_video(processor_class: Any, *parts: Any, **options: Any) -> Any:
    """A processor with no video processor, which would need torchvision."""

    class Unchecked(processor_class):  # type: ignore[misc]
        def check_argument_for_proper_class(self, *arguments: Any) -> None:
            del arguments

    return Unchecked(*parts, **options)


def write_processor(folder: Path, images: Any, **fields: Any) -> None:
    """`processor_config.json` as transformers 5 writes it."""
    described = {"image_processor": images.to_dict(), **fields}
    (folder / "processor_config.json").write_text(json.dumps(described, default=int))


def randomise(model: Any, seed: int = 0) -> None:
    """Weights that keep activations near 1 and let image and question decide the answer."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() > 1 and "embed" not in name:
                scale = 4 if name.endswith(("q_proj.weight", "v_proj.weight")) else 1
                parameter.copy_(scale * values / parameter[0].numel() ** 0.5)
            elif "embed" in name or "newline" in name or "token" in name:
                parameter.copy_(values)
            elif name.endswith("bias"):
                parameter.copy_(0.1 * values)
            else:
                parameter.copy_(0.5 + 0.3 * values)
    model.eval()


def pictures(sizes: Sequence[tuple[int, int]], seed: int = 0) -> list[NDArray[np.uint8]]:
    """Blocks of random colours, so that filters keep some contrast; width before height."""
    rng = np.random.default_rng(seed)
    blocks = [rng.integers(0, 256, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8) for width, height in sizes]
    return [
        block.repeat(8, 0).repeat(8, 1)[:height, :width] for block, (width, height) in zip(blocks, sizes, strict=True)
    ]


def expected_inputs(oracle: Oracle, template: str, question: str, images: Sequence[NDArray[np.uint8]]) -> Any:
    """What transformers' processor makes of a question about images, rendered with the published template."""
    content = [{"type": "image"} for _ in images] + [{"type": "text", "text": question}]
    conversation = [{"role": "user", "content": content}]
    text = oracle.processor.apply_chat_template(conversation, chat_template=template, add_generation_prompt=True)
    pillow = [[Image.fromarray(image) for image in images]]
    return oracle.processor(text=[text], images=pillow, return_tensors="pt", add_special_tokens=False)


@torch.no_grad()
def our_run(model: VlmModel, question: str, images: Sequence[NDArray[np.uint8]]) -> tuple[list[int], Tensor]:
    """Ids of the whole prompt, image tokens included, and logits `[L, V]` of our modules."""
    spec = model.spec
    tokenizer = Tokenizer(model.tokenizer_files["tokenizer.json"])
    newline = None if model.image_newline is None else model.image_newline.float().numpy()
    assembler = ImageAssembler(spec, tokenizer, newline)
    formatter = PromptFormatter(spec.prompt, tokenizer)
    ids = formatter.start([*formatter.system_messages(None), Message("user", question, len(images))])
    placed = []
    for image in images:
        prepared = prepare(load_image(image), spec.preprocess, len(images))
        features = model.vision(torch.from_numpy(normalise(prepared.tiles, spec.preprocess))).numpy()
        pieces = assembler.pieces(features, prepared)
        assert sum(map(len, pieces)) == assembler.positions(prepared)
        placed.append(image_parts(pieces, prepared.key))
    whole: list[int] = []
    embeddings = []
    for segment in segments(splice(ids, placed)):
        if segment.ndim == 2:
            whole += [spec.prompt.image_token_id] * len(segment)
            embeddings.append(torch.from_numpy(segment))
        else:
            whole += segment.tolist()
            embeddings.append(model.decoder.embed_tokens(torch.from_numpy(segment).long()))
    sequence = torch.cat(embeddings)[None]
    logits, _ = model.decoder(sequence, torch.arange(sequence.shape[1])[None])
    return whole, logits[0]


def check_run(oracle: Oracle, model: VlmModel, template: str, sizes: Sequence[tuple[int, int]]) -> None:
    """Ids equal, logits of every position within 1e-4, of one question about images of these sizes."""
    images = pictures(sizes)
    inputs = expected_inputs(oracle, template, QUESTION, images)
    ids, logits = our_run(model, QUESTION, images)
    assert ids == inputs["input_ids"][0].tolist()
    with torch.no_grad():
        expected = oracle.model(**inputs).logits[0]
    assert expected.std() > 0.3
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


def check_bundle(oracle: Oracle, bundle: Path, template: str, questions: Sequence[str] = tuple(QUESTIONS)) -> None:
    """A bundle's session answers with transformers' greedy tokens, whatever the images."""
    answers = []
    with load_session(bundle, vision_engine="onnxruntime", context_length=512) as session:
        for sizes in (QUESTIONS[name] for name in questions):
            images = pictures(sizes)
            expected, margin = expected_answer(oracle, expected_inputs(oracle, template, QUESTION, images))
            assert margin > 0.005, "a near tie: take another seed"
            answer = session.generate(list(images), QUESTION, max_tokens=TOKENS, ignore_eos=True)
            assert list(answer.token_ids) == expected, sizes
            answers.append(expected)
    assert len({tuple(answer) for answer in answers}) > 1, "images do not matter to this model"


@torch.no_grad()
def expected_answer(oracle: Oracle, inputs: Any) -> tuple[list[int], float]:
    """Transformers' greedy tokens, and by how much the closest of them won: llama.cpp keeps its cache in float16."""
    length = inputs["input_ids"].shape[1]
    generated = oracle.model.generate(
        **inputs,
        max_new_tokens=TOKENS,
        do_sample=False,
        eos_token_id=None,
        output_logits=True,
        return_dict_in_generate=True,
    )
    best = torch.cat(generated.logits).topk(2).values
    return list(generated.sequences[0, length:].tolist()), float((best[:, 0] - best[:, 1]).min())
