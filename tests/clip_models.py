"""Small random CLIPs with both towers: as transformers writes them, and as the text side of a random encoder."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from edgevlm.models.text_side import TextSide
from edgevlm.models.text_tower import PatchHead, TextTower
from edgevlm.spec import TextTowerSpec, VitSpec

ROOM = 12
WORDS = ["how many red circles are there", "what number is on the plate", "is there a blue star above the square"]


def clip_tokenizer() -> CLIPTokenizer:
    """CLIP's own kind of tokenizer with a few merges, its two special tokens at the end, as published."""
    trained = CLIPTokenizer().backend_tokenizer
    alphabet = ByteLevel.alphabet()
    trainer = BpeTrainer(
        vocab_size=600, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False, special_tokens=[]
    )
    trained.train_from_iterator(WORDS, trainer)
    model = json.loads(trained.to_str())["model"]
    tokens = dict.fromkeys([*model["vocab"], *(f"{letter}</w>" for letter in alphabet)])
    ordered = [token for token in tokens if not token.startswith("<|")]
    vocab = {token: index for index, token in enumerate([*ordered, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocab, merges=[tuple(pair) for pair in model["merges"]])


def write_clip(folder: Path, vision: dict[str, Any], *, projection: int = 20) -> tuple[CLIPModel, CLIPTokenizer]:
    """A whole `CLIPModel` with its tokenizer; its configuration is wrong about the end token, as the published are."""
    tokenizer = clip_tokenizer()
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "max_position_embeddings": ROOM,
        "bos_token_id": 0,
        "eos_token_id": 2,
    }
    torch.manual_seed(3)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=projection)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter) if parameter.ndim == 1 else 0)
            if parameter.ndim == 2:
                torch.nn.init.normal_(parameter, std=1.5 * parameter.shape[1] ** -0.5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model, tokenizer


def text_side(encoder: VitSpec, tokenizer: Path, *, size: int = 1024, end: int = 1022, seed: int = 5) -> TextSide:
    """A random text side for an encoder, whose texts are tokenised by another tokenizer."""
    torch.manual_seed(seed)
    spec = TextTowerSpec(size, 24, 40, 2, 3, ROOM, 20, end)
    tower, patches = TextTower(spec), PatchHead(encoder.hidden_size, spec.projection_size, encoder.norm_eps)
    for module in (tower, patches):
        for parameter in module.parameters():
            if parameter.ndim == 2:
                torch.nn.init.normal_(parameter, std=1.5 * parameter.shape[1] ** -0.5)
        module.eval().requires_grad_(False)
    return TextSide(spec, tower, patches, tokenizer, ())
