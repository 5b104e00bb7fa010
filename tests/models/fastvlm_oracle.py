# ruff: noqa: E402
"""Run transformers' FastVLM on random weights and print where its files are; started as a process of its own.

In: a folder. Out, in that folder: `hf/` (the checkpoint in the transformers layout), `inputs.safetensors` (pixels,
ids) and `outputs.safetensors` (image features, logits). timm wants torchvision, whose build for CPU torch is not on
the package index, so its operator registration is replaced by an empty module.
"""

import sys
import types
from pathlib import Path

sys.modules["torchvision._meta_registrations"] = types.ModuleType("torchvision._meta_registrations")

import torch
from safetensors.torch import save_file
from timm.layers import set_fused_attn
from transformers import FastVlmConfig, FastVlmForConditionalGeneration, TimmWrapperConfig

IMAGE_ID = 300
PROMPT = [5, 17, *[IMAGE_ID] * 4, 40, 41, 42, 7]


def main(folder: Path) -> None:
    """Write checkpoint, inputs and outputs into `folder`."""
    torch.manual_seed(0)
    set_fused_attn(False)
    vision = TimmWrapperConfig(
        architecture="fastvit_mci3",
        do_pooling=True,
        global_pool="avg",
        hidden_size=512,
        model_args={
            "inference_mode": True,
            "layers": (1, 2, 2, 1, 2),
            "embed_dims": (16, 32, 64, 128, 256),
        },
    )
    text = {
        "model_type": "qwen2",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 320,
        "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"},
        "tie_word_embeddings": True,
    }
    config = FastVlmConfig(vision_config=vision, text_config=text, image_token_index=IMAGE_ID, tie_word_embeddings=True)
    model = FastVlmForConditionalGeneration(config).eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        elif name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            torch.nn.init.normal_(buffer, std=0.2)
        elif name.endswith("running_var"):
            torch.nn.init.uniform_(buffer, 0.5, 1.5)
    pixels = torch.rand(1, 3, 128, 128)
    ids = torch.tensor([PROMPT])
    with torch.no_grad():
        logits = model(input_ids=ids, pixel_values=pixels).logits
        features = model.get_image_features(pixels)
    features = features if isinstance(features, torch.Tensor) else features.pooler_output
    if isinstance(features, list | tuple):
        features = torch.stack(list(features))
    model.save_pretrained(folder / "hf")
    save_file({"pixels": pixels, "ids": ids}, folder / "inputs.safetensors")
    outputs = {"logits": logits.contiguous(), "features": features.reshape(-1, features.shape[-1]).contiguous()}
    save_file(outputs, folder / "outputs.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
