"""TinyGPT-V of the published size with random weights: its four sources; one of `edgevlm zoo synth`'s checkpoints.

In: a folder. Out: `eva_vit_g.pth` (float16), `blip2_pretrained_flant5xxl.pth` and `stage4.pth` (float32, in `model`),
`phi-2/` (float16, fused attention) with a tokenizer whose `<|endoftext|>` has its published id, and
`edgevlm-sources.yaml`. Memory holds a piece at a time.
"""

import json
import math
import mmap
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from tokenizers import Tokenizer
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from edgevlm.atomic import write_text
from edgevlm.errors import InputError
from edgevlm.models.tinygptv_sources import SOURCES_FILE
from edgevlm.progress import Report
from edgevlm.zoo.random_weights import AFTER_GELU, ROW_LEVEL, random_pieces, write_random
from edgevlm.zoo.synth import padded_tokenizer
from edgevlm.zoo.tokenizer import ROWS, SPECIAL_TOKENS

_STAGE_PREFIX = "llama_model.base_model.model."
_END = "<|endoftext|>"

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class TinyGptvSynth:
    """Sizes of one checkpoint: of the encoder, the Q-Former, Phi, and what joins them."""

    vision_width: int = 1408
    vision_mlp: int = 6144
    vision_layers: int = 39
    vision_heads: int = 16
    grid: int = 16
    image_size: int = 448
    qformer_width: int = 768
    qformer_layers: int = 12
    qformer_heads: int = 12
    queries: int = 32
    between: int = 4096
    hidden: int = 2560
    mlp: int = 10240
    layers: int = 32
    heads: int = 32
    rows: int = 51200
    end_id: int = 50256
    lora_rank: int = 64
    lora_alpha: int = 16


PATCH = 14
SPECS = {"tinygpt-v": TinyGptvSynth()}
_TINY = TinyGptvSynth(
    vision_width=64,
    vision_mlp=160,
    vision_layers=2,
    vision_heads=4,
    grid=2,
    image_size=56,
    qformer_width=64,
    qformer_layers=2,
    qformer_heads=4,
    queries=8,
    between=96,
    hidden=160,
    mlp=320,
    layers=2,
    heads=2,
    lora_rank=4,
    lora_alpha=1,
    rows=ROWS,
    end_id=ROWS - len(SPECIAL_TOKENS),
)


def write(folder: Path, name: str, *, tiny: bool, seed: int, resolution: int | None, report: Report | None) -> None:
    """Write everything but the model card into `folder`.

    Args:
        folder: exists.
        name: one of `SPECS`.
        tiny: the same layout with small sizes.
        seed: of the weights.
        resolution: input pixels, a multiple of 14; by default as published.
        report: called with (bytes written, bytes in all, tensor name) after each tensor.

    Raises:
        InputError: the resolution is no such multiple.
    """
    spec = _TINY if tiny else SPECS[name]
    spec = replace(spec, image_size=spec.image_size if resolution is None else resolution)
    if spec.image_size <= 0 or spec.image_size % PATCH:
        raise InputError(f"resolution {spec.image_size} is not a multiple of {PATCH}", "zoo synth", "use e.g. 224")
    sizes = [_bytes(vision(spec), 2), _bytes(blip2(spec), 4), _bytes(phi(spec), 2), _bytes(stage(spec), 4)]

    def after(place: int) -> Report | None:
        """Progress of one source as part of all."""
        if report is None:
            return None
        return lambda done, _total, what: report(sum(sizes[:place]) + done, sum(sizes), what)

    _write_pickle(folder / "eva_vit_g.pth", vision(spec), torch.float16, spec, 4 * seed, after(0), bare=True)
    _write_pickle(folder / "blip2_pretrained_flant5xxl.pth", blip2(spec), torch.float32, spec, 4 * seed + 1, after(1))
    (folder / "phi-2").mkdir()
    with (folder / "phi-2" / "model.safetensors").open("wb") as weights:
        moments_of = lambda tensor, shape: moments(tensor, shape, spec)  # noqa: E731
        write_random(weights, phi(spec), moments_of, 4 * seed + 2, after(2), dtype=torch.float16)
    _write_pickle(folder / "stage4.pth", stage(spec), torch.float32, spec, 4 * seed + 3, after(3))
    write_text(folder / "phi-2" / "config.json", json.dumps(_phi_config(spec), indent=2) + "\n")
    write_text(folder / "phi-2" / "tokenizer.json", _tokenizer(spec.end_id))
    write_text(folder / SOURCES_FILE, yaml.safe_dump(_sources(spec), sort_keys=False))


def vision(spec: TinyGptvSynth) -> Shapes:
    """`eva_vit_g.pth`."""
    width, mlp = spec.vision_width, spec.vision_mlp
    shapes: Shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, spec.grid**2 + 1, width),
        "patch_embed.proj.weight": (width, 3, PATCH, PATCH),
        "patch_embed.proj.bias": (width,),
    }
    for index in range(spec.vision_layers):
        path = f"blocks.{index}."
        shapes |= _affine(f"{path}norm1", width) | _affine(f"{path}norm2", width)
        shapes |= {f"{path}attn.q_bias": (width,), f"{path}attn.v_bias": (width,)}
        shapes[f"{path}attn.qkv.weight"] = (3 * width, width)
        shapes |= _linear(f"{path}attn.proj", width, width)
        shapes |= _linear(f"{path}mlp.fc1", mlp, width) | _linear(f"{path}mlp.fc2", width, mlp)
    return shapes


def blip2(spec: TinyGptvSynth) -> Shapes:
    """`blip2_pretrained_flant5xxl.pth`: the Q-Former, and the projection for another language model."""
    shapes = _affine("ln_vision", spec.vision_width) | _linear("t5_proj", spec.between, spec.qformer_width)
    return shapes | _qformer(spec)


def _qformer(spec: TinyGptvSynth) -> Shapes:
    width = spec.qformer_width
    shapes = {"query_tokens": (1, spec.queries, width)} | _affine("Qformer.bert.embeddings.LayerNorm", width)
    for index in range(spec.qformer_layers):
        path = f"Qformer.bert.encoder.layer.{index}."
        attentions = {"attention": width} | ({"crossattention": spec.vision_width} if index % 2 == 0 else {})
        for name, source in attentions.items():
            shapes |= _linear(f"{path}{name}.self.query", width, width)
            shapes |= _linear(f"{path}{name}.self.key", width, source)
            shapes |= _linear(f"{path}{name}.self.value", width, source)
            shapes |= _linear(f"{path}{name}.output.dense", width, width)
            shapes |= _affine(f"{path}{name}.output.LayerNorm", width)
        shapes |= _linear(f"{path}intermediate_query.dense", 4 * width, width)
        shapes |= _linear(f"{path}output_query.dense", width, 4 * width)
        shapes |= _affine(f"{path}output_query.LayerNorm", width)
    return shapes


def phi(spec: TinyGptvSynth) -> Shapes:
    """Phi-2 with its fused attention."""
    hidden = spec.hidden
    shapes: Shapes = {"model.embed_tokens.weight": (spec.rows, hidden)}
    for index in range(spec.layers):
        path = f"model.layers.{index}."
        shapes |= _affine(f"{path}input_layernorm", hidden)
        shapes |= _linear(f"{path}self_attn.query_key_value", 3 * hidden, hidden)
        shapes |= _linear(f"{path}self_attn.dense", hidden, hidden)
        shapes |= _linear(f"{path}mlp.fc1", spec.mlp, hidden) | _linear(f"{path}mlp.fc2", hidden, spec.mlp)
    return shapes | _affine("model.final_layernorm", hidden) | _linear("lm_head", spec.rows, hidden)


def stage(spec: TinyGptvSynth) -> Shapes:
    """What stage 4 of the training wrote."""
    hidden, rank = spec.hidden, spec.lora_rank
    shapes: Shapes = {}
    for index in range(spec.layers):
        path = f"{_STAGE_PREFIX}model.layers.{index}."
        for name, rows in (("query_key_value", 3 * hidden), ("dense", hidden)):
            shapes[f"{path}self_attn.{name}.lora_A.weight"] = (rank, hidden)
            shapes[f"{path}self_attn.{name}.lora_B.weight"] = (rows, rank)
        for name in ("q_layernorm", "k_layernorm"):
            shapes[f"{path}self_attn.{name}.weight"] = (hidden // spec.heads,)
        shapes |= {f"{path}{name}.weight": (hidden,) for name in ("post_layernorm", "input_layernorm")}
    shapes |= _linear("llama_proj", spec.between, spec.qformer_width) | _linear("llama_proj2", hidden, spec.between)
    return shapes | _qformer(spec)


def _linear(name: str, rows: int, columns: int) -> Shapes:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def _affine(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def moments(name: str, shape: tuple[int, ...], spec: TinyGptvSynth) -> tuple[float, float]:
    """Mean and standard deviation that keep the second moment of activations near constant through every block."""
    if name.endswith("post_layernorm.weight"):
        # The attention branch is normalised, so this norm alone decides what it adds to the stream.
        return math.sqrt(ROW_LEVEL / (2 * spec.layers)), 1e-3
    if re.search(r"(norm\d?|LayerNorm|ln_vision)\.weight$", name):
        return 1.0, 0.02
    if name.endswith("bias") or name in ("cls_token", "pos_embed"):
        return 0.0, 0.01
    if name.endswith(("embed_tokens.weight", "lm_head.weight")):
        return 0.0, math.sqrt(ROW_LEVEL)
    if name.endswith("lora_B.weight"):
        return 0.0, 0.05
    if name == "query_tokens":
        return 0.0, 1.0
    gain = 1.0
    if name.startswith("blocks.") and name.endswith(("attn.proj.weight", "mlp.fc2.weight")):
        gain = (AFTER_GELU if "fc2" in name else 1.0) / (2 * spec.vision_layers)
    elif name.endswith("mlp.fc2.weight"):
        gain = AFTER_GELU * ROW_LEVEL / (2 * spec.layers)
    elif name.endswith("output_query.dense.weight"):
        gain = AFTER_GELU
    elif name == "llama_proj2.weight":
        gain = ROW_LEVEL
    return 0.0, math.sqrt(gain / math.prod(shape[1:]))


def _bytes(shapes: Shapes, size: int) -> int:
    return size * sum(map(math.prod, shapes.values()))


def _write_pickle(
    path: Path,
    shapes: Shapes,
    dtype: torch.dtype,
    spec: TinyGptvSynth,
    seed: int,
    report: Report | None,
    *,
    bare: bool = False,
) -> None:
    """A state dict as torch saves it, `bare` or under `model`: first without values, then filled through a map."""
    training: dict[str, Any] = {"optimizer": {}, "config": {}, "scaler": {}, "epoch": 0}
    with FakeTensorMode():
        empty = {name: torch.empty(shape, dtype=dtype) for name, shape in shapes.items()}
    with torch.serialization.skip_data(materialize_fake_tensors=True):
        torch.save(empty if bare else {"model": empty, **training}, path)
    with torch.serialization.set_default_mmap_options(mmap.MAP_SHARED):
        mapped = torch.load(path, mmap=True, weights_only=True)
    state: dict[str, Tensor] = mapped if bare else mapped["model"]
    written, total = 0, _bytes(shapes, dtype.itemsize)
    for index, (name, shape) in enumerate(shapes.items()):
        flat = state[name].view(-1)
        start = 0
        for values in random_pieces(math.prod(shape), *moments(name, shape, spec), seed * 1_000_003 + index):
            flat[start : start + len(values)] = values
            start += len(values)
        written += flat.nbytes
        if report is not None:
            report(written, total, name)


def _phi_config(spec: TinyGptvSynth) -> dict[str, Any]:
    """Phi-2's `config.json`."""
    return {
        "architectures": ["PhiForCausalLM"],
        "bos_token_id": spec.end_id,
        "eos_token_id": spec.end_id,
        "hidden_act": "gelu_new",
        "hidden_size": spec.hidden,
        "initializer_range": 0.02,
        "intermediate_size": spec.mlp,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": 2048,
        "model_type": "phi",
        "num_attention_heads": spec.heads,
        "num_hidden_layers": spec.layers,
        "num_key_value_heads": spec.heads,
        "partial_rotary_factor": 0.4,
        "qk_layernorm": False,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "vocab_size": spec.rows,
    }


def _sources(spec: TinyGptvSynth) -> dict[str, str | int]:
    """`edgevlm-sources.yaml`; sizes that differ from the published ones are stated."""
    stated: dict[str, str | int] = {
        "vision": "eva_vit_g.pth",
        "qformer": "blip2_pretrained_flant5xxl.pth",
        "language_model": "phi-2",
        "stage": "stage4.pth",
        "image_size": spec.image_size,
    }
    published = SPECS["tinygpt-v"]
    fields = ("vision_layers", "vision_heads", "qformer_heads", "lora_rank", "lora_alpha")
    return stated | {name: getattr(spec, name) for name in fields if getattr(spec, name) != getattr(published, name)}


def _tokenizer(end_id: int) -> str:
    """The zoo's tokenizer with one special token."""
    content = json.loads(padded_tokenizer(end_id).to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] == _END]
    checked: Tokenizer = Tokenizer.from_str(json.dumps(content))
    return str(checked.to_str(pretty=True))
