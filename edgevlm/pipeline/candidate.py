"""Run an exported bundle on fixed inputs, in a process of its own, for verification.

In: a bundle and a folder with `inputs.npz`: pixels `[I, 3, R, R]`, the original's image embeddings `[I, N, hidden]`,
and prompts as token ids in which `IMAGE_PLACEHOLDER` stands for the image. Out, in that folder: `outputs.npz` with the
bundle's own image embeddings, the logits after each prompt when it is fed the original's embeddings (so that the
decoder is judged alone), and the greedy tokens of the whole bundle. Device half: no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edgevlm.bundle import Bundle, open_bundle
from edgevlm.prompt import IMAGE_PLACEHOLDER
from edgevlm.runtimes import open_decoder, open_vision
from edgevlm.runtimes.base import DecoderEngine, EngineOptions, Float32, Segment


def segments(ids: list[int], image: Float32) -> list[Segment]:
    """Token ids around the image `[N, hidden]` as segments; the image stands where the id is `IMAGE_PLACEHOLDER`."""
    result: list[Segment] = []
    start = 0
    for index, token in enumerate([*ids, IMAGE_PLACEHOLDER]):
        if token == IMAGE_PLACEHOLDER:
            if index > start:
                result.append(np.array(ids[start:index], dtype=np.int32))
            if index < len(ids):
                result.append(image)
            start = index + 1
    return result


def greedy(engine: DecoderEngine, prompt: list[Segment], count: int, stops: tuple[int, ...]) -> list[int]:
    """At most `count` greedy tokens after a prompt, the stop token included."""
    engine.reset(0)
    tokens = [int(np.argmax(engine.prefill(prompt)))]
    while len(tokens) < count and tokens[-1] not in stops:
        tokens.append(int(np.argmax(engine.decode(tokens[-1]))))
    return tokens


def measure(send: Callable[[Any], None], bundle: str, folder: str, tokens: int) -> dict[str, str]:
    """Child entry point: read `inputs.npz`, write `outputs.npz`, report the engines used.

    Sends `[done, total]` after each prompt.
    """
    opened: Bundle = open_bundle(bundle, unfinished=True)
    with np.load(Path(folder) / "inputs.npz", allow_pickle=False) as inputs:
        pixels, reference = inputs["pixels"], inputs["embeddings"]
        prompts = [inputs[f"prompt{index}"].tolist() for index in range(int(inputs["prompts"]))]
    options = EngineOptions(context_length=reference.shape[1] + max(map(len, prompts)) + tokens)
    vision = open_vision(opened, "onnxruntime", options)
    embeddings = np.concatenate([vision.encode(image[None]) for image in pixels])
    names = {"vision": vision.stats().name}
    vision.close()
    decoder = open_decoder(opened, "auto", options)
    logits, answers = [], {}
    for index, prompt in enumerate(prompts):
        image = index * len(pixels) // len(prompts)
        decoder.reset(0)
        logits.append(np.array(decoder.prefill(segments(prompt, reference[image]))))
        fed = segments(prompt, embeddings[image])
        answers[f"tokens{index}"] = np.array(greedy(decoder, fed, tokens, opened.spec.prompt.stop_token_ids))
        send([index + 1, len(prompts)])
    names["decoder"] = decoder.stats().name
    decoder.close()
    arrays = {"embeddings": embeddings, "logits": np.stack(logits), **answers}
    np.savez(Path(folder) / "outputs.npz", allow_pickle=False, **arrays)
    return names
