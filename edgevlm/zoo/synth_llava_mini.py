"""LLaVA-Mini in its published layout with random weights, of `edgevlm zoo synth`.

`llava-mini-8b` (Llama 3.1, one token an image) and `llava-mini-qwen-0.5b` (the same vision side around Qwen2-0.5B, for
machines that 8B is too much for; nobody published one). In: a folder and a name. Out: four shards and their index, all
bfloat16 but CLIP, which is float32 as published, configuration, and a tokenizer with the published special ids.
"""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from edgevlm.atomic import write_text
from edgevlm.progress import Report
from edgevlm.spec import MlpProjectorSpec, RopeScaling, VisionSpec, VitSpec
from edgevlm.zoo.random_weights import write_random
from edgevlm.zoo.synth_llava_files import special_tokenizer
from edgevlm.zoo.synth_llava_sizes import SPECS as LLAVA_SPECS
from edgevlm.zoo.synth_llava_sizes import LlavaSynth, check_resolution
from edgevlm.zoo.synth_llava_tensors import layout as llava_layout
from edgevlm.zoo.synth_llava_tensors import moments as llava_moments
from edgevlm.zoo.tokenizer import ROWS

#: Layers of the pre-fusion, and of the queries' grid one side (the compressor gives its square).
_FUSION_LAYERS, _QUERY_GRID = 4, 1
_SHARDS = 4
_TOWER = "model.vision_tower.vision_tower.vision_model."
_LLAMA31_ROPE = RopeScaling(8.0, 1.0, 4.0, 8192)
_LLAMA31_SPECIAL = {
    "<|begin_of_text|>": 0,
    "<|end_of_text|>": 1,
    "<|start_header_id|>": 6,
    "<|end_header_id|>": 7,
    "<|eom_id|>": 8,
    "<|eot_id|>": 9,
}
_QWEN2_SPECIAL = {"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2, "<image>": 3}
#: Special tokens above the first one's id, and the ids that end an answer.
_SPECIAL = {"llama": (_LLAMA31_SPECIAL, (1, 8, 9)), "qwen2": (_QWEN2_SPECIAL, (2,))}


def _sized(published: LlavaSynth, **decoder: Any) -> LlavaSynth:
    """LLaVA-1.5's vision side around another decoder."""
    spec = replace(published.decoder, **decoder)
    vision = replace(published.vision, projector=MlpProjectorSpec(spec.hidden_size))
    return replace(published, vision=vision, decoder=spec)


_LLAVA = LLAVA_SPECS["llava-1.5-7b"]
SPECS: dict[str, LlavaSynth] = {
    "llava-mini-8b": replace(
        _sized(
            _LLAVA,
            vocab_size=128256,
            intermediate_size=14336,
            num_key_value_heads=8,
            rope_theta=5e5,
            max_position_embeddings=131072,
            rope_scaling=_LLAMA31_ROPE,
        ),
        special_start=128000,
    ),
    "llava-mini-qwen-0.5b": replace(
        _LLAVA,
        vision=replace(_LLAVA.vision, projector=MlpProjectorSpec(896)),
        decoder=replace(LLAVA_SPECS["llava-onevision-0.5b"].decoder, vocab_size=151936),
        special_start=151643,
    ),
}


def write(
    folder: Path,
    name: str,
    *,
    tiny: bool,
    seed: int,
    resolution: int | None,
    report: Report | None,
    hollow: bool = False,
) -> None:
    """Write everything but the model card into `folder`.

    Args:
        folder: exists.
        name: one of `SPECS`.
        tiny: the same layout with small sizes.
        seed: of the weights.
        resolution: only the published one, since CLIP has a table of positions.
        report: called with (bytes written, bytes in all, tensor name) after each tensor.
        hollow: leave holes where weights would be.

    Raises:
        InputError: another resolution.
    """
    spec = tiny_spec(SPECS[name]) if tiny else SPECS[name]
    check_resolution(name, spec, resolution)
    offsets, stops = _SPECIAL[spec.decoder.architecture]
    ids = {token: spec.special_start + offset for token, offset in offsets.items()}
    stop_ids = [spec.special_start + stop for stop in stops]
    write_text(folder / "config.json", json.dumps(configuration(spec, stop_ids), indent=2) + "\n")
    write_text(folder / "generation_config.json", json.dumps({"do_sample": False, "eos_token_id": stop_ids}) + "\n")
    write_text(folder / "tokenizer_config.json", json.dumps({"model_max_length": _context(spec)}) + "\n")
    write_text(folder / "tokenizer.json", special_tokenizer(ids))
    _write_shards(folder, layout(spec), spec, seed, report, hollow)


def layout(spec: LlavaSynth) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The role (the IR's name, as far as it has one) and the shape of each tensor by its published name."""
    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    fusion: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, (role, shape) in llava_layout(spec).items():
        published = (
            name.replace("model.language_model.", "model.")
            .replace("model.vision_tower.", _TOWER)
            .replace("model.multi_modal_projector.linear_1.", "model.mm_projector.0.")
            .replace("model.multi_modal_projector.linear_2.", "model.mm_projector.2.")
        )
        found[published] = role, shape
        layer = published.removeprefix("model.layers.")
        if layer != published and int(layer.split(".")[0]) < _FUSION_LAYERS:
            fusion[f"model.prefusion_layers.{layer}"] = role.replace("decoder.", "fusion.", 1), shape
    return {**found, **fusion, **_compressor(spec)}


def _compressor(spec: LlavaSynth) -> dict[str, tuple[str, tuple[int, ...]]]:
    encoder = spec.vision.encoder
    assert isinstance(encoder, VitSpec)
    width, queries = encoder.hidden_size, _QUERY_GRID**2
    shapes: dict[str, tuple[int, ...]] = {
        "pos_embed": (queries, width),
        "query": (queries, width),
        "attn.in_proj_weight": (3 * width, width),
        "attn.in_proj_bias": (3 * width,),
        "attn.out_proj.weight": (width, width),
        "attn.out_proj.bias": (width,),
    }
    shapes |= {f"{norm}.{kind}": (width,) for norm in ("ln_q", "ln_kv") for kind in ("weight", "bias")}
    return {f"model.compressor.{name}": (f"compressor.{name}", shape) for name, shape in shapes.items()}


def moments(role: str, shape: tuple[int, ...], spec: LlavaSynth) -> tuple[float, float]:
    """Mean and standard deviation of a tensor that keep activations near one second moment throughout."""
    if role.startswith("compressor."):
        if role.endswith(("ln_q.weight", "ln_kv.weight")):
            return 1.0, 0.02
        if role.endswith("bias"):
            return 0.0, 0.01
        if role.endswith(("query", "pos_embed")):
            return 0.0, 0.7
        # Sharp enough that a query looks at some patches, not at their mean.
        return 0.0, math.sqrt((3.0 if "in_proj" in role else 1.0) / shape[1])
    mean, std = llava_moments(role.replace("fusion.", "decoder.", 1), shape, spec)
    if role.startswith("fusion.") and role.endswith(("o_proj.weight", "down_proj.weight")):
        # The few layers of the fusion change what goes through them as much as the whole decoder does.
        std *= math.sqrt(spec.decoder.num_hidden_layers / _FUSION_LAYERS)
    return mean, std


def _write_shards(
    folder: Path,
    roles: dict[str, tuple[str, tuple[int, ...]]],
    spec: LlavaSynth,
    seed: int,
    report: Report | None,
    hollow: bool,
) -> None:
    """Three shards of about one size and a last one with CLIP, and the index."""
    sizes = {name: math.prod(shape) * _dtype(name).itemsize for name, (_, shape) in roles.items()}
    total = sum(sizes.values())
    half = {name: size for name, size in sizes.items() if not name.startswith(_TOWER)}
    shards: list[list[str]] = [[] for _ in range(_SHARDS)]
    before = 0
    for name, size in half.items():
        shards[before * (_SHARDS - 1) // sum(half.values())].append(name)
        before += size
    shards[-1] = [name for name in roles if name not in half]
    index: dict[str, str] = {}
    done = 0
    for number, names in enumerate(shards):
        file = f"model-{number + 1:05d}-of-{_SHARDS:05d}.safetensors"
        index |= dict.fromkeys(names, file)

        def tell(part: float, _whole: float, name: str, before: int = done) -> None:
            if report is not None:
                report(before + part, total, name)

        shapes = {name: roles[name][1] for name in names}
        with (folder / file).open("wb") as weights:
            write_random(
                weights,
                shapes,
                lambda name, shape: moments(roles[name][0], shape, spec),
                seed * _SHARDS + number,
                tell,
                dtype=_dtype(names[0]),
                hollow=hollow,
            )
        done += sum(sizes[name] for name in names)
    content = {"metadata": {"total_size": total}, "weight_map": index}
    write_text(folder / "model.safetensors.index.json", json.dumps(content, indent=2) + "\n")


def _dtype(name: str) -> torch.dtype:
    return torch.float32 if name.startswith(_TOWER) else torch.bfloat16


def configuration(spec: LlavaSynth, stop_ids: list[int]) -> dict[str, Any]:
    """`config.json`, with the fields of the published checkpoints."""
    decoder, encoder = spec.decoder, spec.vision.encoder
    llama = decoder.architecture == "llama"
    rope = None
    if decoder.rope_scaling is not None:
        rope = {
            "factor": decoder.rope_scaling.factor,
            "high_freq_factor": decoder.rope_scaling.high_freq_factor,
            "low_freq_factor": decoder.rope_scaling.low_freq_factor,
            "original_max_position_embeddings": decoder.rope_scaling.original_max_position_embeddings,
            "rope_type": "llama3",
        }
    return {
        "architectures": ["LlavaMiniLlamaForCausalLM" if llama else "LlavaMiniQwenForCausalLM"],
        "bos_token_id": spec.special_start if llama else None,
        "compressor_size": _QUERY_GRID,
        "eos_token_id": stop_ids,
        "hidden_act": "silu",
        "hidden_size": decoder.hidden_size,
        "image_aspect_ratio": "square",
        "intermediate_size": decoder.intermediate_size,
        "max_position_embeddings": decoder.max_position_embeddings,
        "mm_hidden_size": encoder.output_size,
        "mm_patch_merge_type": "flat",
        "mm_projector_type": "mlp2x_gelu",
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": "openai/clip-vit-large-patch14-336",
        "model_type": "llava_mini_llama" if llama else "llava_mini_qwen",
        "num_attention_heads": decoder.num_attention_heads,
        "num_hidden_layers": decoder.num_hidden_layers,
        "num_key_value_heads": decoder.num_key_value_heads,
        "prefusion_layer_num": _FUSION_LAYERS,
        "resolution_ratio": 1,
        "rms_norm_eps": decoder.norm_eps,
        "rope_scaling": rope,
        "rope_theta": decoder.rope_theta,
        "tie_word_embeddings": decoder.tied_embeddings,
        "tokenizer_model_max_length": _context(spec),
        "torch_dtype": "bfloat16",
        "use_mm_proj": True,
        "vocab_size": decoder.vocab_size,
    }


def _context(spec: LlavaSynth) -> int:
    return min(8192, spec.decoder.max_position_embeddings)


def tiny_spec(published: LlavaSynth) -> LlavaSynth:
    """The same layout, tie rule and rotary scaling with small sizes."""
    tower = _LLAVA.vision.encoder
    assert isinstance(tower, VitSpec)
    encoder = replace(
        tower,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=2,
        grid=4,
    )
    decoder = replace(
        published.decoder,
        vocab_size=ROWS + 16,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=_FUSION_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        rotary_dim=32,
        max_position_embeddings=2048,
    )
    vision = VisionSpec(encoder, MlpProjectorSpec(128), 56, 16)
    return LlavaSynth("llava", vision, decoder, ROWS)
