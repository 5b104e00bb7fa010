"""Run an exported bundle on fixed inputs, in a process of its own, for verification.

In: a bundle and a folder with `inputs.npz`: images as uint8 `[H, W, 3]` (and the question that each is asked, where
image tokens are chosen by it), the original's features of their tiles
`[T, N, hidden]` (and the places of those that are shared out among tiles), prompts as token ids in which
`IMAGE_PLACEHOLDER` stands for the image, and, for models with a fusion, the original's fused prompts `[L, hidden]`.
Out, in that folder: `outputs.npz` with the bundle's own features, its fused prompts made of the original's features,
the logits after each prompt when it is fed what the original feeds its decoder (so that the decoder is judged alone),
what then goes on behind each stage of a decoder that drops image tokens, and the greedy tokens of the whole bundle.
Device half: no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.assembly import ImageAssembler
from edgevlm.bundle import Bundle, open_bundle
from edgevlm.context import Frames, image_parts, segments, splice
from edgevlm.feature_rows import load_newline
from edgevlm.fusing import PromptFuser
from edgevlm.imageio import load_image
from edgevlm.preprocess import prepare
from edgevlm.question import GuidedVision
from edgevlm.runtimes import open_decoder, open_fusion, open_vision
from edgevlm.runtimes.base import DecoderEngine, Encoded, EngineOptions, Segment
from edgevlm.runtimes.onnxruntime import OnnxRuntimeDecoder
from edgevlm.seeing import open_questions
from edgevlm.tile_tokens import encode_image
from edgevlm.tokenizer import Tokenizer

#: Bytes of vision weights above which the parent, which holds the original, leaves too little memory for their copies.
_LARGE = 1 << 30


def greedy(engine: DecoderEngine, prompt: list[Segment], count: int, stops: tuple[int, ...]) -> list[int]:
    """At most `count` greedy tokens after a prompt, the stop token included."""
    engine.reset(0)
    tokens = [int(np.argmax(engine.prefill(prompt)))]
    while len(tokens) < count and tokens[-1] not in stops:
        tokens.append(int(np.argmax(engine.decode(tokens[-1]))))
    return tokens


def as_arrays(images: list[Encoded]) -> dict[str, NDArray[Any]]:
    """What was made of images, by names for a file."""
    found: dict[str, NDArray[Any]] = {f"features{index}": image.rows for index, image in enumerate(images)}
    return found | {f"places{index}": image.places for index, image in enumerate(images) if image.places is not None}


def read_encoded(arrays: Mapping[str, NDArray[Any]], index: int) -> Encoded:
    """One of the images that `as_arrays` named."""
    return Encoded(arrays[f"features{index}"], arrays.get(f"places{index}"))


def measure(send: Callable[[Any], None], bundle: str, folder: str, tokens: int) -> dict[str, str]:
    """Child entry point: read `inputs.npz`, write `outputs.npz`, report the engines used.

    Sends `[done, total]` after each prompt.
    """
    opened: Bundle = open_bundle(bundle, unfinished=True)
    with np.load(Path(folder) / "inputs.npz", allow_pickle=False) as inputs:
        count, asked = int(inputs["images"]), int(inputs["prompts"])
        images = [prepare(load_image(inputs[f"image{index}"]), opened.spec.preprocess) for index in range(count)]
        reference = [read_encoded(inputs, index) for index in range(count)]
        prompts = [inputs[f"prompt{index}"].tolist() for index in range(asked)]
        questions = [str(inputs.get(f"question{index}", "")) for index in range(count)]
        fused = {index: inputs[f"fused{index}"] for index in range(asked) if opened.spec.fusion is not None}
    tokenizer = Tokenizer(opened.artifact("tokenizer", "tokenizer.json"))
    assembler = ImageAssembler(opened.spec, tokenizer, load_newline(opened))
    longest = max(map(assembler.positions, images)) + max(map(len, prompts)) + tokens
    options = EngineOptions(context_length=longest)
    weights = sum(entry.bytes for entry in opened.manifest.artifacts if entry.role == "vision")
    thrifty = replace(options, low_memory=weights > _LARGE)
    vision = open_vision(opened, "onnxruntime", thrifty)
    reader, features = open_questions(opened, options), []
    for picture, question in zip(images, questions, strict=True):
        engine = vision if reader is None else GuidedVision(vision, reader.embed(question))
        features.append(encode_image(engine, picture, opened.spec))
    if reader is not None:
        reader.close()
    names = {"vision": vision.stats().name}
    vision.close()
    decoder = open_decoder(opened, "auto", options)
    fusion = open_fusion(opened, options)
    logits, answers, found = [], {}, as_arrays(features)
    for index, prompt in enumerate(prompts):
        image = index * count // asked
        key, rows = images[image].key, (features[image], reference[image])
        if fusion is None or opened.spec.fusion is None:
            pieces = (image_parts(assembler.pieces(each.rows, images[image], each.places), key) for each in rows)
            fed, original = (segments(splice(prompt, [parts])) for parts in pieces)
        else:
            numbers, fuser = opened.spec.fusion, PromptFuser(opened.spec.fusion, fusion, decoder)
            asked_about = (splice(prompt, [[Frames(key, tuple(each.rows), numbers.image_tokens)]]) for each in rows)
            fed, ours = (segments(fuser.fuse(parts, reuse=False)) for parts in asked_about)
            found[f"fused{index}"] = np.concatenate(ours)
            original = [fused[index]]
        decoder.reset(0)
        logits.append(np.array(decoder.prefill(original)))
        if opened.spec.decoder.token_drop is not None and isinstance(decoder, OnnxRuntimeDecoder):
            found |= {f"kept{index}.{stage}": places for stage, places in enumerate(decoder.kept)}
        answers[f"tokens{index}"] = np.array(greedy(decoder, fed, tokens, opened.spec.prompt.stop_token_ids))
        send([index + 1, asked])
    names["decoder"] = decoder.stats().name
    decoder.close()
    if fusion is not None:
        names["fusion"] = fusion.stats().name
        fusion.close()
    np.savez(Path(folder) / "outputs.npz", allow_pickle=False, logits=np.stack(logits), **found, **answers)
    return names
