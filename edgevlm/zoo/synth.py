"""Checkpoints of published sizes with random weights, to measure size, memory and latency without the real weights.

In: a name and a seed. Out: a folder in the published layout (here FastVLM's, Apple's; `synth_*.py` write those of other
families): `model.safetensors` (bfloat16, every published tensor but the redundant head of tied models), configuration,
and a tokenizer whose special tokens have their published ids. The weights preserve variance, so activations neither
vanish nor explode, and no weight is a denormal number in any 16-bit format. Written tensor by tensor: memory stays
small whatever the model's size.
"""

import importlib
import json
import math
import re
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from edgevlm.atomic import atomic_folder, write_text
from edgevlm.errors import InputError
from edgevlm.models.decoder import Decoder
from edgevlm.models.fastvithd import FastViTHD
from edgevlm.progress import Report
from edgevlm.spec import DecoderSpec, FastViTHDSpec
from edgevlm.zoo.layout import VISION_PREFIX, apple_tensor_name, write_configuration
from edgevlm.zoo.random_weights import AFTER_GELU, ROW_LEVEL, write_random
from edgevlm.zoo.synth_decoders import sized
from edgevlm.zoo.tokenizer import IMAGE_TOKEN, ROWS, SPECIAL_TOKENS, build_tokenizer, save_tokenizer, token_id

_CLIP_WIDTH = 768


@dataclass(frozen=True)
class SynthSpec:
    """Sizes of one synthetic checkpoint; `special_start` is the id of the first special token."""

    encoder: FastViTHDSpec
    decoder: DecoderSpec
    resolution: int
    special_start: int


_QWEN2_SPECIAL_START = 151643
SPECS: dict[str, SynthSpec] = {
    name: SynthSpec(FastViTHDSpec(), decoder, 1024, _QWEN2_SPECIAL_START)
    for name, decoder in (
        ("fastvlm-0.5b", sized("qwen2", 151936, 896, 4864, 24, 14, 2)),
        ("fastvlm-1.5b", sized("qwen2", 151936, 1536, 8960, 28, 12, 2)),
        ("fastvlm-7b", sized("qwen2", 152064, 3584, 18944, 28, 28, 4, tied=False)),
    )
}
#: Checkpoints of other families, and the module whose `write` makes them.
_OTHERS = {
    "qwen2-vl-2b": "edgevlm.zoo.synth_qwen2_vl",
    "llava-1.5-7b": "edgevlm.zoo.synth_llava",
    "llava-onevision-0.5b": "edgevlm.zoo.synth_llava",
    "smolvlm-256m": "edgevlm.zoo.synth_llava",
    "smolvlm-500m": "edgevlm.zoo.synth_llava",
    "internvl3-1b": "edgevlm.zoo.synth_llava",
    "tinygpt-v": "edgevlm.zoo.synth_tinygptv",
    "llava-mini-8b": "edgevlm.zoo.synth_llava_mini",
    "llava-mini-qwen-0.5b": "edgevlm.zoo.synth_llava_mini",
}
NAMES = (*SPECS, *_OTHERS)
#: Those in formats that cannot have holes.
WHOLE = ("tinygpt-v",)
_TINY = SynthSpec(
    encoder=FastViTHDSpec(depths=(1, 1, 1, 1, 1), dims=(12, 24, 48, 96, 192), squeeze_channels=24),
    decoder=sized("qwen2", ROWS, 128, 256, 2, 4, 2, context=2048),
    resolution=256,
    special_start=ROWS - len(SPECIAL_TOKENS),
)


def synth(
    name: str,
    out: Path,
    *,
    tiny: bool = False,
    seed: int = 0,
    resolution: int | None = None,
    replace_existing: bool = False,
    report: Report | None = None,
    hollow: bool = False,
) -> None:
    """Write a random checkpoint of the sizes of `name` to the folder `out`, atomically.

    Args:
        tiny: the same layout and tie rule with an eighth of the widths, one block a stage and two decoder layers.
        resolution: input pixels, a multiple of 64; by default the published 1024 (`tiny`: 256).
        report: called with (bytes written, bytes in all, tensor name) after each tensor.
        hollow: leave holes where weights would be, for what reads names and shapes alone; not for those of `WHOLE`.

    Raises:
        InputError: unknown name or resolution, or `out` cannot be written.
    """
    if name not in NAMES:
        raise InputError(f"unknown checkpoint {name!r:.60}", "zoo synth", f"use one of {', '.join(sorted(NAMES))}")
    if name in _OTHERS:
        with atomic_folder(out, replace=replace_existing) as folder:
            _write_card(folder, name, tiny, seed)
            module = importlib.import_module(_OTHERS[name])
            holes = {} if name in WHOLE else {"hollow": hollow}
            module.write(folder, name, tiny=tiny, seed=seed, resolution=resolution, report=report, **holes)
        return
    published = SPECS[name]
    spec = published
    if tiny:
        spec = replace(_TINY, decoder=replace(_TINY.decoder, tied_embeddings=published.decoder.tied_embeddings))
    spec = replace(spec, resolution=spec.resolution if resolution is None else resolution)
    if spec.resolution <= 0 or spec.resolution % spec.encoder.stride:
        raise InputError(
            f"resolution {spec.resolution} is not a multiple of {spec.encoder.stride}", "zoo synth", "use e.g. 512"
        )
    tokenizer = padded_tokenizer(spec.special_start)
    with atomic_folder(out, replace=replace_existing) as folder:
        write_configuration(
            folder,
            spec.encoder,
            spec.decoder,
            spec.resolution,
            dtype="bfloat16",
            stop_id=token_id(tokenizer, "<|im_end|>"),
            image_id=token_id(tokenizer, IMAGE_TOKEN),
        )
        save_tokenizer(tokenizer, folder, min(8192, spec.decoder.max_position_embeddings))
        _write_card(folder, name, tiny, seed)
        with (folder / "model.safetensors").open("wb") as file:
            of_tensor = lambda name, shape: weight_moments(name, shape, spec)  # noqa: E731
            write_random(file, layout(spec), of_tensor, seed, report, _mix, hollow=hollow)


def _write_card(folder: Path, name: str, tiny: bool, seed: int) -> None:
    write_text(
        folder / "README.md",
        f"---\nlicense: cc0-1.0\n---\n\n# {name}: random weights\n\n"
        f"Written by `edgevlm zoo synth {name}{' --tiny' if tiny else ''} --seed {seed}`. Sizes and layout are the "
        "published ones; the weights are random and the answers are noise. For measuring only.\n",
    )


def layout(spec: SynthSpec) -> dict[str, tuple[int, ...]]:
    """Published tensor names and shapes, in file order."""
    features, hidden = spec.encoder.output_size, spec.decoder.hidden_size
    with torch.device("meta"):
        whole = nn.ModuleDict(
            {
                "vision": FastViTHD(spec.encoder, batchnorm=True),
                "projector": nn.Sequential(nn.Linear(features, hidden), nn.GELU(), nn.Linear(hidden, hidden)),
                "decoder": Decoder(spec.decoder),
            }
        )
    shapes = {apple_tensor_name(name): tuple(value.shape) for name, value in whole.state_dict().items()}
    shapes[f"{VISION_PREFIX}head.proj"] = (features, _CLIP_WIDTH)
    return shapes


def _is_mixer(name: str, shape: tuple[int, ...]) -> bool:
    """A depthwise convolution that stands alone in the stream (token mixer, position encoding): near the identity."""
    alone = "token_mixer.reparam_conv" in name or re.search(r"network\.(6|9)\.reparam_conv", name) is not None
    return alone and len(shape) == 4


def _mix(name: str, shape: tuple[int, ...], values: Tensor) -> None:
    """Add the identity to a token mixer."""
    if _is_mixer(name, shape):
        centre = shape[2] // 2
        values.view(shape)[:, 0, centre, centre] += 1.0


def weight_moments(name: str, shape: tuple[int, ...], spec: SynthSpec) -> tuple[float, float]:
    """Mean and standard deviation that keep the second moment of activations near constant through every block.

    The decoder's branches together add as much to the residual stream as the embedding brings, so that a tied head has
    a clear favourite, as a trained one has: on a tie of near-equal logits no precision could agree with another.
    """
    if re.search(r"(norm\.weight|bn\.weight|running_var)$", name) or "layernorm.weight" in name:
        return 1.0, 0.02
    if "layer_scale" in name:
        return 0.2, 0.01
    if name.endswith("se.expand.bias"):
        return 2.0, 0.02
    if name.endswith(("bias", "running_mean")):
        return 0.0, 0.01
    if name.endswith(("embed_tokens.weight", "lm_head.weight")):
        return 0.0, math.sqrt(ROW_LEVEL)
    fan_in = math.prod(shape[1:])
    if name.endswith("head.proj"):
        return 0.0, 1 / math.sqrt(shape[0])
    if _is_mixer(name, shape):
        return 0.0, 0.1 / math.sqrt(fan_in)
    gain = 1.0
    if name.endswith(("patch_embed.0.reparam_conv.weight", "lkb_reparam.weight", "conv_exp.reparam_conv.weight")):
        # Pixels have a second moment of a third; the stream, after two GELUs of signals of mixed size, about a sixth.
        gain = 3.0 if "patch_embed" in name else 3.5
    elif name.endswith(("fc2.weight", "proj.1.reparam_conv.weight")) or "patch_embed" in name:
        gain = AFTER_GELU
    elif name.endswith("mm_projector.2.weight"):
        # Image embeddings about as large as the rows of the embedding; the encoder's features are well below one.
        gain = 8 * AFTER_GELU * ROW_LEVEL
    elif name.endswith(("o_proj.weight", "down_proj.weight")):
        gain = ROW_LEVEL / (2 * spec.decoder.num_hidden_layers)
    return 0.0, math.sqrt(gain / fan_in)


def padded_tokenizer(special_start: int) -> Tokenizer:
    """The zoo's tokenizer with its four special tokens moved to `special_start`, as in Qwen2 (151643 and on).

    The rows between hold filler tokens that no text encodes to, so that every id below the special ones decodes.
    """
    tokenizer = build_tokenizer()
    content = json.loads(tokenizer.to_str())
    vocabulary = content["model"]["vocab"]
    for index in range(len(vocabulary), special_start):
        vocabulary[f"<|filler_{index}|>"] = index
    for index, token in enumerate(content["added_tokens"]):
        token["id"] = special_start + index
    padded: Tokenizer = Tokenizer.from_str(json.dumps(content))
    return padded
