"""LLaVA-Mini as the specification states it, in the parts of transformers and torch; and tiny checkpoints of it.

No transformers class exists, so the forward pass (models specification, 3.2) is written out here, with its masks, over
`CLIPVisionModel`, `MultiheadAttention`, and Llama's (or Qwen2's) decoder layers. It shares no code with the product.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer, Qwen2RotaryEmbedding

from edgevlm.zoo.tokenizer import build_tokenizer, save_tokenizer

IMAGE = -200
ROWS = 1040
CLIP = {
    "hidden_size": 128,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
}
TEXT: dict[str, Any] = {
    "vocab_size": ROWS,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LLAMA3_TOKENS = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|end_of_text|>")


@dataclass
class Oracle:
    """The published modules with random weights; `compressor_size` C, `resolution_ratio` 1 or 2."""

    compressor_size: int
    resolution_ratio: int
    text: Any
    clip: CLIPVisionModel
    attention: nn.MultiheadAttention
    ln_q: nn.LayerNorm
    ln_kv: nn.LayerNorm
    query: Tensor
    pos_embed: Tensor
    projector: nn.Sequential
    prefusion: nn.ModuleList
    rotary: nn.Module

    def state_dict(self) -> dict[str, Tensor]:
        """All tensors under their published names."""
        state: dict[str, Tensor] = dict(self.text.state_dict())
        tower = "model.vision_tower.vision_tower.vision_model."
        state |= {tower + name.removeprefix("vision_model."): value for name, value in self.clip.state_dict().items()}
        state |= {f"model.mm_projector.{name}": value for name, value in self.projector.state_dict().items()}
        state |= {f"model.prefusion_layers.{name}": value for name, value in self.prefusion.state_dict().items()}
        state |= {f"model.compressor.attn.{name}": value for name, value in self.attention.state_dict().items()}
        for norm in ("ln_q", "ln_kv"):
            state |= {f"model.compressor.{norm}.{name}": v for name, v in getattr(self, norm).state_dict().items()}
        return state | {"model.compressor.query": self.query, "model.compressor.pos_embed": self.pos_embed}

    def features(self, parts: Tensor) -> Tensor:
        """CLIP's hidden state -2 without the class token, of parts `[P, 3, R, R]`."""
        hidden: Tensor = self.clip(parts, output_hidden_states=True).hidden_states[-2]
        return hidden[:, 1:]

    def compress(self, patches: Tensor) -> Tensor:
        """Patches of a square map `[N, C]` to `[C^2, C]`."""
        side, grid = round(len(patches) ** 0.5), self.compressor_size
        table = self.pos_embed.view(1, grid, grid, -1).permute(0, 3, 1, 2)
        resized = F.interpolate(table, size=(side, side), mode="bicubic", align_corners=False)
        positions = self.pos_embed if side == grid else resized.permute(0, 2, 3, 1).flatten(0, 2)
        values = self.ln_kv(patches)
        out, _ = self.attention(
            (self.ln_q(self.query) + self.pos_embed)[None], (values + positions)[None], values[None]
        )
        return out[0]  # type: ignore[no-any-return]

    def visual(self, parts: Tensor) -> tuple[Tensor, Tensor]:
        """What goes before the text in the pre-fusion: projected patches `[N, H]`, compressed tokens `[C^2, H]`."""
        features = self.features(parts)
        if self.resolution_ratio == 1:
            assert len(parts) == 1
            return self.projector(features[0]), self.projector(self.compress(features[0]))
        side = round(features.shape[1] ** 0.5)
        rows = []
        for down in range(2):
            for y in range(side):
                for across in range(2):
                    rows += [features[2 * down + across, y * side + x] for x in range(side)]
        high = torch.stack(rows)
        patches = torch.cat((self.projector(high), self.projector(features[-1])))
        return patches, self.projector(self.compress(high))

    def fuse(self, parts: Tensor, ids: list[int]) -> tuple[Tensor, Tensor]:
        """Fused vision tokens `[C^2, H]` and text `[L, H]`; masked positions keep their raw embedding."""
        patches, compressed = self.visual(parts)
        clamped = torch.tensor(ids).clamp(min=0)
        raw = self.text.get_input_embeddings()(clamped)
        x = torch.cat((patches, compressed, raw))[None]
        valid = torch.cat((torch.ones(len(patches) + len(compressed), dtype=torch.bool), clamped > 0))
        length = x.shape[1]
        allowed = torch.ones(length, length, dtype=torch.bool).tril() & valid[None]
        mask = torch.where(allowed, 0.0, torch.finfo(torch.float32).min)[None, None]
        positions = valid.long().cumsum(0) - 1
        positions[~valid] = 1
        tables = self.rotary(x, positions[None])
        for layer in self.prefusion:
            x = layer(x, attention_mask=mask, position_ids=positions[None], position_embeddings=tables)
        text = torch.where((clamped > 0)[:, None], x[0, -len(ids) :], raw)
        return x[0, -len(ids) - len(compressed) : -len(ids)], text

    @torch.no_grad()
    def prompt(self, frames: list[Tensor], ids: list[int]) -> Tensor:
        """Embeddings `[T, H]` that the language model sees; without frames it sees the plain prompt."""
        if not frames:
            plain: Tensor = self.text.get_input_embeddings()(torch.tensor(ids))
            return plain
        fused = [self.fuse(parts, ids) for parts in frames]
        tokens = torch.cat([tokens for tokens, _ in fused])
        text = torch.stack([text for _, text in fused]).mean(0)
        place = ids.index(IMAGE)
        return torch.cat((text[:place], tokens, text[place + 1 :]))

    @torch.no_grad()
    def logits(self, frames: list[Tensor], ids: list[int]) -> Tensor:
        """Logits `[T, V]` at every position of the prompt."""
        logits: Tensor = self.text(inputs_embeds=self.prompt(frames, ids)[None]).logits[0]
        return logits

    @torch.no_grad()
    def greedy(self, frames: list[Tensor], ids: list[int], count: int) -> list[int]:
        """The likeliest tokens; those decoded enter as plain embeddings."""
        x = self.prompt(frames, ids)
        tokens: list[int] = []
        for _ in range(count):
            tokens.append(int(self.text(inputs_embeds=x[None]).logits[0, -1].argmax()))
            x = torch.cat((x, self.text.get_input_embeddings()(torch.tensor(tokens[-1:]))))
        return tokens


def make_oracle(*, kind: str = "llama", compressor_size: int = 1, resolution_ratio: int = 1, seed: int = 0) -> Oracle:
    """Random weights at which image, question and fusion all decide the answer."""
    torch.manual_seed(seed)
    eager = {"attn_implementation": "eager"}
    if kind == "llama":
        rope = {**LLAMA3_ROPE, "rope_theta": 500000.0}
        config: Any = LlamaConfig(**TEXT, rms_norm_eps=1e-5, rope_parameters=rope, tie_word_embeddings=False, **eager)
        model, layer, rotary = LlamaForCausalLM, LlamaDecoderLayer, LlamaRotaryEmbedding
    else:
        config = Qwen2Config(**TEXT, rms_norm_eps=1e-6, tie_word_embeddings=False, **eager)
        model, layer, rotary = Qwen2ForCausalLM, Qwen2DecoderLayer, Qwen2RotaryEmbedding
    text = model(config)
    width = CLIP["hidden_size"]
    oracle = Oracle(
        compressor_size,
        resolution_ratio,
        text.eval(),
        CLIPVisionModel(CLIPVisionConfig(**CLIP)).eval(),
        nn.MultiheadAttention(width, 8, batch_first=True).eval(),
        nn.LayerNorm(width),
        nn.LayerNorm(width),
        torch.randn(compressor_size**2, width),
        torch.randn(compressor_size**2, width),
        nn.Sequential(nn.Linear(width, 64), nn.GELU(), nn.Linear(64, 64)),
        nn.ModuleList([layer(text.config, index) for index in range(2)]).eval(),
        rotary(text.config),
    )
    with torch.no_grad():
        for name, value in oracle.state_dict().items():
            if not value.is_floating_point():
                continue
            noise = torch.randn(value.shape)
            is_norm = "norm" in name or ".ln_" in name
            if value.dim() > 1:
                gain = 3.0 if "q_proj" in name or "in_proj" in name else 1.5
                is_table = "embed_tokens" in name or "position_embedding" in name or ".compressor.pos" in name
                value.copy_(noise * (1.0 if is_table else gain / value[0].numel() ** 0.5))
            else:
                value.copy_(noise * 0.1 + (1.0 if is_norm and name.endswith("weight") else 0.0))
    return oracle


def write_checkpoint(oracle: Oracle, folder: Path, *, kind: str = "llama", **changes: Any) -> Path:
    """The published files: two shards in different dtypes (exact in both), configuration, tokenizer."""
    folder.mkdir(exist_ok=True)
    state = {name: value.clone() for name, value in oracle.state_dict().items()}
    vision = {name: value for name, value in state.items() if "vision_tower" in name}
    rest = {name: value for name, value in state.items() if name not in vision}
    shards = {"model-00001-of-00002.safetensors": rest, "model-00002-of-00002.safetensors": vision}
    for file, tensors in shards.items():
        save_file(tensors, folder / file, metadata={"format": "pt"})
    index = {"weight_map": {name: file for file, tensors in shards.items() for name in tensors}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    text = oracle.text.config
    config = {
        **TEXT,
        "model_type": f"llava_mini_{kind}",
        "hidden_act": "silu",
        "rms_norm_eps": text.rms_norm_eps,
        "rope_theta": text.rope_parameters["rope_theta"],
        "rope_scaling": LLAMA3_ROPE if kind == "llama" else None,
        "compressor_size": oracle.compressor_size,
        "prefusion_layer_num": len(oracle.prefusion),
        "resolution_ratio": oracle.resolution_ratio,
        "mm_vision_tower": "openai/clip-vit-large-patch14-336",
        "mm_hidden_size": CLIP["hidden_size"],
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "image_aspect_ratio": "square",
        **changes,
    }
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = build_tokenizer(1024)
    if kind == "llama":
        tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in LLAMA3_TOKENS])
    save_tokenizer(tokenizer, folder, 512)
    return folder


def halve(oracle: Oracle) -> None:
    """Round all but CLIP to bfloat16, as the published checkpoint stores it."""
    for name, value in oracle.state_dict().items():
        if "vision_tower" not in name and value.is_floating_point():
            value.copy_(value.bfloat16().float())
