"""Sizes of the synthetic checkpoints of the LLaVA class: the published ones, and the same layouts small."""

from dataclasses import dataclass, replace
from typing import Literal

from edgevlm.errors import InputError
from edgevlm.spec import DecoderSpec, LinearProjectorSpec, MlpProjectorSpec, VisionSpec, VitSpec
from edgevlm.zoo.synth_decoders import sized
from edgevlm.zoo.tokenizer import ROWS, SPECIAL_TOKENS

Kind = Literal["llava", "llava_onevision", "smolvlm", "internvl"]

_TINY_START = ROWS - len(SPECIAL_TOKENS)


@dataclass(frozen=True)
class LlavaSynth:
    """Sizes of one checkpoint; `special_start` is the id of the first special token."""

    kind: Kind
    vision: VisionSpec
    decoder: DecoderSpec
    special_start: int


def _vit(side: int, patch: int, width: int, intermediate: int, layers: int, heads: int) -> VitSpec:
    return VitSpec(width, intermediate, layers, heads, patch, side // patch, norm_eps=1e-6)


def _clip(side: int, patch: int, width: int, layers: int, heads: int) -> VitSpec:
    return replace(
        _vit(side, patch, width, 4 * width, layers, heads),
        norm_eps=1e-5,
        activation="quick_gelu",
        class_token=True,
        patch_bias=False,
        pre_norm=True,
        post_norm=True,
    )


def _siglip(side: int, patch: int, width: int, intermediate: int, layers: int, heads: int) -> VitSpec:
    return replace(_vit(side, patch, width, intermediate, layers, heads), activation="gelu_tanh", post_norm=True)


def _intern_vit(side: int, patch: int, width: int, layers: int, heads: int) -> VitSpec:
    return replace(_vit(side, patch, width, 4 * width, layers, heads), class_token=True, layer_scale=True)


_VICUNA = sized("llama", 32064, 4096, 11008, 32, 32, 32, theta=1e4, tied=False, context=4096)
_QWEN2 = sized("qwen2", 152000, 896, 4864, 24, 14, 2)
_SMOL_TOWER = _siglip(512, 16, 768, 3072, 12, 12)
SPECS = {
    "llava-1.5-7b": LlavaSynth(
        "llava", VisionSpec(_clip(336, 14, 1024, 24, 16), MlpProjectorSpec(4096), 336, 576), _VICUNA, 32000
    ),
    "llava-onevision-0.5b": LlavaSynth(
        "llava_onevision",
        VisionSpec(_siglip(384, 14, 1152, 4304, 27, 16), MlpProjectorSpec(896), 384, 729),
        _QWEN2,
        151643,
    ),
    "smolvlm-256m": LlavaSynth(
        "smolvlm",
        VisionSpec(_SMOL_TOWER, LinearProjectorSpec(bias=False), 512, 64, pixel_shuffle=4),
        sized("llama", 49280, 576, 1536, 30, 9, 3, theta=1e5, context=8192),
        49152,
    ),
    "smolvlm-500m": LlavaSynth(
        "smolvlm",
        VisionSpec(_SMOL_TOWER, LinearProjectorSpec(bias=False), 512, 64, pixel_shuffle=4),
        sized("llama", 49280, 960, 2560, 32, 15, 5, theta=1e5, context=8192),
        49152,
    ),
    "internvl3-1b": LlavaSynth(
        "internvl",
        VisionSpec(
            _intern_vit(448, 14, 1024, 24, 16), MlpProjectorSpec(896, input_norm=True), 448, 256, pixel_shuffle=2
        ),
        replace(_QWEN2, vocab_size=151674),
        151643,
    ),
}
_TINY_ENCODERS = {
    "llava": _clip(56, 14, 64, 2, 4),
    "llava_onevision": _siglip(56, 14, 64, 96, 2, 4),
    "smolvlm": _siglip(64, 16, 64, 96, 2, 4),
    "internvl": _intern_vit(56, 14, 64, 2, 4),
}


def tiny(spec: LlavaSynth) -> LlavaSynth:
    """The same layout with small sizes."""
    encoder = _TINY_ENCODERS[spec.kind]
    projector = spec.vision.projector
    if isinstance(projector, MlpProjectorSpec):
        projector = replace(projector, hidden_size=128)
    shuffle = spec.vision.pixel_shuffle
    vision = VisionSpec(
        encoder, projector, encoder.grid * encoder.patch_size, (encoder.grid // shuffle) ** 2, pixel_shuffle=shuffle
    )
    decoder = replace(
        spec.decoder,
        vocab_size=ROWS + len(special_tokens(spec.kind)),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        rotary_dim=32,
        max_position_embeddings=2048,
    )
    return LlavaSynth(spec.kind, vision, decoder, _TINY_START)


def check_resolution(name: str, spec: LlavaSynth, resolution: int | None) -> None:
    """Refuse another resolution than the published, since these towers have a table of positions.

    Raises:
        InputError: it is another.
    """
    if resolution not in (None, spec.vision.image_size):
        raise InputError(
            f"{name} is published for {spec.vision.image_size} pixels", "zoo synth", "leave --resolution out"
        )


def special_tokens(kind: Kind) -> tuple[str, ...]:
    """The special tokens of a layout, in the order of their ids."""
    if kind == "llava":
        return ("<image>", "<pad>", "<s>", "</s>")
    if kind == "smolvlm":
        rows = tuple(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7))
        framing = ("<|im_start|>", "<fake_token_around_image>", "<image>", "<global-img>", "<end_of_utterance>")
        return ("<|endoftext|>", *framing, *rows)
    images = ("<image>",) if kind == "llava_onevision" else ("<img>", "</img>", "<IMG_CONTEXT>")
    return ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *images)


def special_ids(spec: LlavaSynth) -> dict[str, int]:
    """Id by special token."""
    return {token: spec.special_start + index for index, token in enumerate(special_tokens(spec.kind))}
