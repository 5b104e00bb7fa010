"""What `edgevlm models` lists. A family stands here once its tests export it, verify it and answer with it."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """One family of checkpoints.

    Attributes:
        name: the module in `edgevlm.models`.
        title: what people call it.
        checkpoints: published checkpoints, as hub ids.
        formats: artefact families it exports to.
    """

    name: str
    title: str
    checkpoints: tuple[str, ...]
    formats: tuple[str, ...]


CATALOG = (
    Family(
        name="fastvlm",
        title="FastVLM (FastViTHD + Qwen2), Apple's and the transformers layout",
        checkpoints=(
            "apple/FastVLM-0.5B",
            "apple/FastVLM-1.5B",
            "apple/FastVLM-7B",
            "KamilaMila/FastVLM-0.5B",
            "KamilaMila/FastVLM-1.5B",
            "KamilaMila/FastVLM-7B",
        ),
        formats=("onnx", "gguf"),
    ),
    Family(
        name="tinygptv",
        title="TinyGPT-V (EVA-ViT-g + Q-Former + patched Phi-2), from its four sources",
        checkpoints=("Tyrannosaurus/TinyGPT-V",),
        formats=("onnx",),
    ),
    Family(
        name="idefics3",
        title="SmolVLM and Idefics3 (SigLIP with pixel shuffle + Llama)",
        checkpoints=(
            "HuggingFaceTB/SmolVLM-256M-Instruct",
            "HuggingFaceTB/SmolVLM-500M-Instruct",
            "HuggingFaceTB/SmolVLM-Instruct",
            "HuggingFaceTB/SmolVLM2-256M-Video-Instruct",
            "HuggingFaceTB/SmolVLM2-500M-Video-Instruct",
            "HuggingFaceTB/SmolVLM2-2.2B-Instruct",
            "HuggingFaceM4/Idefics3-8B-Llama3",
        ),
        formats=("onnx", "gguf"),
    ),
    Family(
        name="llava_mini",
        title="LLaVA-Mini (CLIP compressed to a token, pre-fusion, Llama 3.1, Vicuna or Qwen2)",
        checkpoints=("ICTNLP/llava-mini-llama-3.1-8b",),
        formats=("onnx", "gguf"),
    ),
    Family(
        name="qwen2_vl",
        title="Qwen2-VL (images of any shape, M-RoPE), the hub's and the transformers layout",
        checkpoints=("Qwen/Qwen2-VL-2B-Instruct", "Qwen/Qwen2-VL-7B-Instruct", "Qwen/Qwen2-VL-72B-Instruct"),
        formats=("onnx", "gguf"),
    ),
    Family(
        name="internvl",
        title="InternVL2.5 and 3 (InternViT + Qwen2), the transformers and the original layout",
        checkpoints=(
            "OpenGVLab/InternVL3-1B-hf",
            "OpenGVLab/InternVL3-2B-hf",
            "OpenGVLab/InternVL3-8B-hf",
            "OpenGVLab/InternVL3-1B",
            "OpenGVLab/InternVL3-2B",
            "OpenGVLab/InternVL3-8B",
        ),
        formats=("onnx", "gguf"),
    ),
    Family(
        name="llava",
        title="LLaVA-1.5 (CLIP or SigLIP + Llama, Mistral, Qwen2, Phi), the hub's, transformers' and original layout",
        checkpoints=(
            "llava-hf/llava-1.5-7b-hf",
            "llava-hf/llava-1.5-13b-hf",
            "liuhaotian/llava-v1.5-7b",
            "liuhaotian/llava-v1.5-13b",
        ),
        formats=("onnx", "gguf"),
    ),
    Family(
        name="llava_next",
        title="LLaVA-NeXT or LLaVA-1.6 (CLIP + Mistral, Vicuna or Llama 3), transformers' layout and the hub's before",
        checkpoints=(
            "llava-hf/llava-v1.6-mistral-7b-hf",
            "llava-hf/llava-v1.6-vicuna-7b-hf",
            "llava-hf/llava-v1.6-vicuna-13b-hf",
            "llava-hf/llama3-llava-next-8b-hf",
        ),
        formats=("onnx", "gguf"),
    ),
    Family(
        name="llava_onevision",
        title="LLaVA-OneVision (SigLIP + Qwen2)",
        checkpoints=(
            "llava-hf/llava-onevision-qwen2-0.5b-ov-hf",
            "llava-hf/llava-onevision-qwen2-0.5b-si-hf",
            "llava-hf/llava-onevision-qwen2-7b-ov-hf",
            "llava-hf/llava-onevision-qwen2-7b-si-hf",
            "llava-hf/llava-onevision-qwen2-7b-ov-chat-hf",
        ),
        formats=("onnx", "gguf"),
    ),
    Family(
        name="phi_vlm",
        title="Bunny, LLaVA-Phi and Mipha (SigLIP or CLIP + Phi-2)",
        checkpoints=("BAAI/Bunny-v1_0-3B", "zhumj34/Mipha-3B"),
        formats=("onnx", "gguf"),
    ),
    Family(
        name="mobilevlm",
        title="MobileVLM and MobileVLM V2 (CLIP + light projector + MobileLLaMA)",
        checkpoints=("mtgv/MobileVLM-1.7B", "mtgv/MobileVLM-3B", "mtgv/MobileVLM_V2-1.7B", "mtgv/MobileVLM_V2-3B"),
        formats=("onnx", "gguf"),
    ),
    Family(
        name="nanovlm",
        title="nanoVLM (SigLIP with pixel shuffle + SmolLM2)",
        checkpoints=("lusxvr/nanoVLM-222M", "lusxvr/nanoVLM-450M", "lusxvr/nanoVLM-460M-8k"),
        formats=("onnx", "gguf"),
    ),
)


def matching(pattern: str) -> list[Family]:
    """Families whose name, or one of whose checkpoints, matches a shell pattern, without regard to case."""
    wanted = pattern.lower()
    return [
        family
        for family in CATALOG
        if any(fnmatch.fnmatch(text.lower(), wanted) for text in (family.name, *family.checkpoints))
    ]
