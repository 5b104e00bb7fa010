"""Random LLaVA checkpoints beside transformers' own model and processor, and what they are asked with."""

import json
import re
from pathlib import Path
from typing import Any

import torch
from llama_tokenizer import build_llama_tokenizer
from tiled_models import TEXT, Oracle, fast_tokenizer, randomise

from edgevlm.models.conversations import VICUNA_SYSTEM
from edgevlm.models.vlm import VlmModel

SIZE, PATCH = 32, 8
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": SIZE,
    "patch_size": PATCH,
}
#: What a message holds, images with a line break after each.
LINES = (
    "{% for line in message['content'] %}{% if line['type'] == 'image' %}{{ '<image>\n' }}"
    "{% else %}{{ line['text'] }}{% endif %}{% endfor %}"
)
#: `vicuna_v1` as transformers renders it, the tokens between which differ by tokenizer.
VICUNA = (
    "{start}"
    + VICUNA_SYSTEM
    + " {% for message in messages %}{{ message['role'] | upper }}: "
    + LINES
    + " {% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
CHATML = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n" + LINES + "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MISTRAL = "<s>{% for message in messages %}[INST] " + LINES + " [/INST]{% endfor %}"
TEMPLATES = {"llama": VICUNA.replace("{start}", "<s>"), "mistral": MISTRAL, "qwen2": CHATML, "phi": CHATML}


def llama_tokenizer(folder: Path, *special: str) -> Any:
    """Llama's tokenizer, as a file and for transformers; with more special tokens than its own."""
    from transformers import PreTrainedTokenizerFast

    backend = build_llama_tokenizer(special=("<image>", *special))
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 512}))
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="</s>")


def text_config(kind: str) -> dict[str, Any]:
    if kind == "phi":
        # ONNX Runtime rotates channels in groups of 16.
        return {"model_type": "phi", **TEXT, "num_attention_heads": 2, "num_key_value_heads": 2}
    window: dict[str, Any] = {"sliding_window": None} if kind == "mistral" else {}
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2} if kind in ("llama", "mistral") else {}
    return {"model_type": kind, **TEXT, **ends, **window}


def make(folder: Path, kind: str, tower: str = "clip", *, pad: bool = False, seed: int = 0, **config: Any) -> Oracle:
    """A checkpoint as transformers writes it, with its processor files."""
    tokenizer = llama_tokenizer(folder) if kind in ("llama", "mistral") else fast_tokenizer(folder, ())
    from transformers import (
        CLIPVisionConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        SiglipVisionConfig,
    )
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    strategy = config.get("vision_feature_select_strategy", "default")
    vision: Any = CLIPVisionConfig(**VISION) if tower == "clip" else SiglipVisionConfig(**VISION)
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=vision,
            text_config=text_config(kind),
            image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
            **config,
        )
    )
    randomise(model, seed)
    model.save_pretrained(folder)
    if tower == "clip":
        edges: dict[str, int] = {"shortest_edge": SIZE}
        images: Any = LlavaImageProcessorPil(size=edges, crop_size={"height": SIZE, "width": SIZE}, do_pad=pad)
    else:
        images = SiglipImageProcessorPil(size={"height": SIZE, "width": SIZE})
    processor = LlavaProcessor(images, tokenizer, PATCH, strategy, num_additional_image_tokens=int(tower == "clip"))
    processor.save_pretrained(folder)
    return Oracle(folder, model, processor)


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def older_hub_name(name: str) -> str:
    """As checkpoints from before transformers 4.52 have it (models specification, 4.2)."""
    name = re.sub(r"^lm_head\.", "language_model.lm_head.", name)
    name = re.sub(r"^model\.language_model\.", "language_model.model.", name)
    return re.sub(r"^model\.(vision_tower\.)", r"\1vision_model.", name).removeprefix("model.")


def same_model(found: VlmModel, expected: VlmModel) -> None:
    for part in ("vision", "decoder"):
        theirs = getattr(expected, part).state_dict()
        ours = getattr(found, part).state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert found.spec.vision == expected.spec.vision
    assert found.spec.decoder == expected.spec.decoder
    assert found.spec.prompt == expected.spec.prompt
