"""The nano models that `edgevlm zoo train` knows: sizes, training settings, published layout.

A family is an entry of `FAMILIES`; the trainer, the stages, the losses and the scores are the same for all of them.
"""

from dataclasses import dataclass, replace

from edgevlm.errors import InputError
from edgevlm.spec import CompressedVitSpec, DecoderSpec, FastViTHDSpec, FusionSpec, QFormerSpec, VitSpec
from edgevlm.zoo.clip import TextTowerSpec
from edgevlm.zoo.layout import write_fastvlm
from edgevlm.zoo.llava_layout import write_llava
from edgevlm.zoo.llava_mini_layout import write_llava_mini
from edgevlm.zoo.nano import NanoSpec, PromptPieces
from edgevlm.zoo.publish import Write
from edgevlm.zoo.tinygptv_layout import write_tinygptv
from edgevlm.zoo.trainer import Settings


@dataclass(frozen=True)
class Family:
    """One nano model.

    Attributes:
        settings: of the training run that `edgevlm zoo train` starts, at seed 0.
        write: tensors (a state dict of `NanoVLM`, float16), configuration and tokenizer to a folder in the published
            layout.
        layout: whose layout that is, in words.
    """

    settings: Settings
    write: Write
    layout: str


_DECODER = DecoderSpec(
    architecture="qwen2",
    vocab_size=1024,
    hidden_size=256,
    intermediate_size=512,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
    rotary_dim=64,
    rope_theta=1e6,
    norm_eps=1e-6,
    max_position_embeddings=2048,
    qkv_bias=True,
)

FASTVLM = NanoSpec(
    encoder=FastViTHDSpec(depths=(1, 1, 2, 1, 1), dims=(8, 16, 64, 128, 256), squeeze_channels=32),
    decoder=_DECODER,
    image_size=512,
)

_LLAMA = replace(_DECODER, architecture="llama", qkv_bias=False)

_CLIP = VitSpec(
    hidden_size=128,
    intermediate_size=512,
    num_hidden_layers=5,
    num_attention_heads=4,
    patch_size=16,
    grid=12,
    norm_eps=1e-5,
    activation="quick_gelu",
    class_token=True,
    patch_bias=False,
    pre_norm=True,
)

LLAVA = NanoSpec(
    encoder=_CLIP,
    decoder=_LLAMA,
    image_size=192,
    text=TextTowerSpec(
        vocab_size=1024,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=48,
        projection_size=128,
    ),
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
)

LLAVA_MINI = replace(
    LLAVA,
    encoder=CompressedVitSpec(_CLIP, query_grid=1, query_heads=8),
    decoder=replace(_LLAMA, num_hidden_layers=2),
    fusion=FusionSpec(num_hidden_layers=_LLAMA.num_hidden_layers, image_tokens=1),
)

TINYGPTV = NanoSpec(
    encoder=VitSpec(
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=5,
        num_attention_heads=4,
        patch_size=16,
        grid=14,
        norm_eps=1e-6,
        class_token=True,
        keep_class_token=True,
    ),
    decoder=DecoderSpec(
        architecture="phi2",
        vocab_size=1024,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=64,
        rotary_dim=32,
        rope_theta=1e4,
        norm_eps=1e-5,
        max_position_embeddings=2048,
        norm="layer",
        residual="parallel",
        mlp="gelu_new",
        qkv_bias=True,
        attention_out_bias=True,
        mlp_bias=True,
        qk_norm="layer",
        post_attention_norm="rms",
        tied_embeddings=False,
        head_bias=True,
    ),
    image_size=224,
    queries=QFormerSpec(
        hidden_size=128, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4, num_queries=32
    ),
    pointing=((2, 0), (3, 0), (3, 1)),
    prompt=PromptPieces("[INST] <Img>", "</Img> [vqa] {question} [/INST]", "<|endoftext|>"),
    mean=LLAVA.mean,
    std=LLAVA.std,
)

FAMILIES = {
    "nano-fastvlm": Family(
        Settings(spec=FASTVLM, empty_weight=0.3), write_fastvlm, "Apple's `llava_qwen2` checkpoints"
    ),
    "nano-llava": Family(
        Settings(
            spec=LLAVA,
            images={"vision": 33_600, "align": 1_600, "answers": 8_000},
            batch={"vision": 16, "align": 8, "answers": 8},
            peak_rate={"vision": 1.5e-3, "align": 1.5e-3, "answers": 5e-4},
            clutter=12,
            start_from="nano-fastvlm",
        ),
        write_llava,
        "LLaVA-1.5 as transformers writes it",
    ),
    "nano-llava-mini": Family(
        Settings(
            spec=LLAVA_MINI,
            images={"fusion": 7_200},
            batch={"fusion": 8},
            peak_rate={"fusion": 5e-4},
            clutter=12,
            start_from="nano-llava",
        ),
        write_llava_mini,
        "LLaVA-Mini, its CLIP in a folder of its own",
    ),
    "nano-tinygpt-v": Family(
        Settings(
            spec=TINYGPTV,
            images={"vision": 32_000, "queries": 48_000, "answers": 20_000},
            batch={"vision": 16, "queries": 16, "answers": 8},
            peak_rate={"vision": 1.5e-3, "queries": 1.5e-3, "answers": 1e-3},
        ),
        write_tinygptv,
        "TinyGPT-V's four sources",
    ),
}


def family(name: str) -> Family:
    """The nano model `name`.

    Raises:
        InputError: there is none of that name.
    """
    if name not in FAMILIES:
        raise InputError(f"there is no nano model {name!r:.60}", name, f"use one of {', '.join(FAMILIES)}")
    return FAMILIES[name]
