"""A tiny TinyGPT-V stated independently: transformers' EVA, Q-Former and Phi, LoRA unmerged, two projections.

What transformers' Phi lacks, the RMSNorm on the attention branch, is a hook behind its attention. `write` saves the
model as the four published sources.
"""

from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    Blip2QFormerConfig,
    Blip2QFormerModel,
    Blip2VisionConfig,
    Blip2VisionModel,
    PhiConfig,
    PhiForCausalLM,
)

from edgevlm.zoo.tokenizer import build_tokenizer

RANK, ALPHA, PATCH = 4, 1.0, 14
HEADS, HEAD_DIM, VISION, QFORMER, BETWEEN, LAYERS = 2, 80, 48, 64, 72, 2
HIDDEN = HEADS * HEAD_DIM
STAGE = "llama_model.base_model.model.model.layers."


class Reference(nn.Module):
    """The model; `grid` is the side of its table of positions, `resolution` of its input."""

    def __init__(self, seed: int = 0, *, grid: int = 2, resolution: int = 56) -> None:
        super().__init__()
        self.resolution = resolution
        vision = Blip2VisionConfig(
            hidden_size=VISION,
            intermediate_size=80,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=resolution,
            patch_size=PATCH,
            layer_norm_eps=1e-6,
        )
        qformer = Blip2QFormerConfig(
            hidden_size=QFORMER,
            intermediate_size=96,
            num_hidden_layers=4,
            num_attention_heads=4,
            encoder_hidden_size=VISION,
        )
        phi = PhiConfig(
            vocab_size=1100,
            hidden_size=HIDDEN,
            intermediate_size=192,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            max_position_embeddings=256,
            partial_rotary_factor=0.4,
            qk_layernorm=True,
            tie_word_embeddings=False,
        )
        self.eva, self.qformer, self.phi = Blip2VisionModel(vision), Blip2QFormerModel(qformer), PhiForCausalLM(phi)
        self.positions = nn.Parameter(torch.empty(1, grid**2 + 1, VISION))
        self.ln_vision = nn.LayerNorm(VISION, eps=1e-5)
        self.queries = nn.Parameter(torch.empty(1, 5, QFORMER))
        self.llama_proj, self.llama_proj2 = nn.Linear(QFORMER, BETWEEN), nn.Linear(BETWEEN, HIDDEN)
        self.post = nn.ModuleList([nn.RMSNorm(HIDDEN, eps=1e-6) for _ in range(LAYERS)])
        self.lora = nn.ParameterDict()
        for index, layer in enumerate(self.phi.model.layers):
            for target, rows in (("query_key_value", 3 * HIDDEN), ("dense", HIDDEN)):
                self.lora[f"{index}_{target}_A"] = nn.Parameter(torch.empty(RANK, HIDDEN))
                self.lora[f"{index}_{target}_B"] = nn.Parameter(torch.empty(rows, RANK))
            self._hook(index, layer.self_attn)
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            values = torch.randn(parameter.shape, generator=generator)
            small = 0.1 * values if name.endswith("bias") else 0.8 + 0.3 * values
            parameter.data = values / parameter[0].numel() ** 0.5 if parameter.ndim > 1 else small
        self.phi.lm_head.weight.data *= 4
        for layer in self.phi.model.layers:
            # Published are the norms' weights alone; sharp attention makes question and image decide.
            for norm in (layer.self_attn.q_layernorm, layer.self_attn.k_layernorm):
                nn.init.zeros_(norm.bias)
                norm.weight.data *= 1.5
        for layer in self.eva.encoder.layers:
            layer.self_attn.qkv.bias.data[VISION : 2 * VISION] = 0
        self.eval().requires_grad_(False)

    def _hook(self, index: int, attention: nn.Module) -> None:
        """LoRA beside its matrices, and the norm behind the attention."""

        def add(target: str, place: int | None) -> Any:
            def hook(_module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
                b = self.lora[f"{index}_{target}_B"]
                if place is not None:
                    b = b.view(HEADS, 3, HEAD_DIM, RANK)[:, place].reshape(HIDDEN, RANK)
                added: Tensor = ALPHA / RANK * (inputs[0] @ self.lora[f"{index}_{target}_A"].T @ b.T)
                return output + added

            return hook

        for place, name in enumerate(("q_proj", "k_proj", "v_proj")):
            attention.get_submodule(name).register_forward_hook(add("query_key_value", place))
        attention.get_submodule("dense").register_forward_hook(add("dense", None))
        attention.register_forward_hook(lambda _m, _i, output: (self.post[index](output[0]), *output[1:]))

    def features(self, pixels: Tensor) -> Tensor:
        """Pixels `[B, 3, R, R]` to image embeddings `[B, Q, H]`."""
        side, grid = round((self.positions.shape[1] - 1) ** 0.5), self.resolution // PATCH
        table = self.positions[:, 1:].view(1, side, side, VISION).permute(0, 3, 1, 2)
        table = F.interpolate(table, size=(grid, grid), mode="bicubic", align_corners=False)
        self.eva.embeddings.position_embedding.data = torch.cat(
            (self.positions[:, :1], table.permute(0, 2, 3, 1).reshape(1, grid**2, VISION)), dim=1
        )
        # The last norm of BLIP-2's class is not EVA's.
        hidden = self.eva.encoder(self.eva.embeddings(pixels)).last_hidden_state
        queries = self.queries.expand(len(pixels), -1, -1)
        read = self.qformer(query_embeds=queries, encoder_hidden_states=self.ln_vision(hidden)).last_hidden_state
        return self.llama_proj2(self.llama_proj(read))  # type: ignore[no-any-return]

    def embeddings(self, ids: list[int], pixels: Tensor, placeholder: int) -> Tensor:
        """`[1, S, H]`, the image where the placeholder stands."""
        place = ids.index(placeholder)
        embed = self.phi.model.embed_tokens
        before, after = (embed(torch.tensor([part])) for part in (ids[:place], ids[place + 1 :]))
        return torch.cat((before, self.features(pixels), after), dim=1)

    def eva_tensors(self) -> dict[str, Tensor]:
        """As `eva_vit_g.pth` names them."""
        tensors = {
            "cls_token": self.eva.embeddings.class_embedding,
            "pos_embed": self.positions,
            "patch_embed.proj.weight": self.eva.embeddings.patch_embedding.weight,
            "patch_embed.proj.bias": self.eva.embeddings.patch_embedding.bias,
        }
        for index, layer in enumerate(self.eva.encoder.layers):
            path = f"blocks.{index}."
            tensors |= {f"{path}norm1.{n}": p for n, p in layer.layer_norm1.named_parameters()}
            tensors |= {f"{path}norm2.{n}": p for n, p in layer.layer_norm2.named_parameters()}
            tensors |= {f"{path}mlp.{n}": p for n, p in layer.mlp.named_parameters()}
            tensors |= {f"{path}attn.proj.{n}": p for n, p in layer.self_attn.projection.named_parameters()}
            bias = layer.self_attn.qkv.bias
            tensors[f"{path}attn.qkv.weight"] = layer.self_attn.qkv.weight
            tensors[f"{path}attn.q_bias"], tensors[f"{path}attn.v_bias"] = bias[:VISION], bias[2 * VISION :]
        return plain(tensors)

    def qformer_tensors(self) -> dict[str, Tensor]:
        """`query_tokens` and `Qformer.bert.*`."""
        tensors = {"query_tokens": self.queries}
        for name, value in self.qformer.named_parameters():
            name = name.replace("attention.attention.", "attention.self.")
            if name.startswith("layernorm."):
                name = name.replace("layernorm.", "embeddings.LayerNorm.")
            tensors[f"Qformer.bert.{name}"] = value
        return plain(tensors)

    def phi_tensors(self, layout: str) -> dict[str, Tensor]:
        """Phi-2 without what TinyGPT-V adds: `old` (fused) or `current`."""
        tensors: dict[str, Tensor] = dict(self.phi.named_parameters())
        for index in range(LAYERS):
            for name in ("q_layernorm", "k_layernorm"):
                for kind in ("weight", "bias"):
                    del tensors[f"model.layers.{index}.self_attn.{name}.{kind}"]
            tensors[f"model.layers.{index}.input_layernorm.weight"] = torch.zeros(HIDDEN)  # the stage's count
        if layout == "old":
            for index in range(LAYERS):
                path = f"model.layers.{index}.self_attn."
                for kind in ("weight", "bias"):
                    parts = [tensors.pop(f"{path}{name}_proj.{kind}") for name in "qkv"]
                    by_head = torch.stack([part.reshape(HEADS, HEAD_DIM, -1) for part in parts], dim=1)
                    fused = by_head.reshape(3 * HIDDEN, -1)
                    tensors[f"{path}query_key_value.{kind}"] = fused if kind == "weight" else fused[:, 0]
        return plain(tensors)

    def stage_tensors(self, *, qformer: bool, adapter: str = "") -> dict[str, Tensor]:
        """What training writes; `adapter` as newer peft puts it into the names of LoRA."""
        tensors: dict[str, Any] = {}
        for name, value in self.lora.items():
            layer_index, _, target = name[:-2].partition("_")
            tensors[f"{STAGE}{layer_index}.self_attn.{target}.lora_{name[-1]}{adapter}.weight"] = value
        for index, layer in enumerate(self.phi.model.layers):
            for name in ("q_layernorm", "k_layernorm"):
                tensors[f"{STAGE}{index}.self_attn.{name}.weight"] = layer.self_attn.get_submodule(name).weight
            tensors[f"{STAGE}{index}.post_layernorm.weight"] = self.post[index].weight
            tensors[f"{STAGE}{index}.input_layernorm.weight"] = layer.input_layernorm.weight
        for name in ("llama_proj", "llama_proj2"):
            tensors |= {f"{name}.{n}": p for n, p in self.get_submodule(name).named_parameters()}
        tensors |= self.qformer_tensors() if qformer else {}
        return {**plain(tensors), "Qformer.bert.embeddings.position_ids": torch.arange(512)[None]}

    def write(
        self, folder: Path, *, layout: str = "old", qformer_in_stage: bool = True, adapter: str = "", **fields: Any
    ) -> None:
        """The four sources and `edgevlm-sources.yaml`."""
        (folder / "phi-2").mkdir(parents=True)
        last = {f"blocks.3.{name[9:]}": value for name, value in self.eva_tensors().items() if "blocks.0" in name}
        torch.save({**self.eva_tensors(), **last}, folder / "eva.pth")  # one block more than run
        blip = {"t5_proj.weight": torch.zeros(3, QFORMER), "t5_proj.bias": torch.zeros(3)}
        blip["Qformer.bert.encoder.layer.0.intermediate.dense.weight"] = torch.zeros(2, QFORMER)
        blip |= {f"ln_vision.{n}": p for n, p in plain(dict(self.ln_vision.named_parameters())).items()}
        elsewhere = Reference(seed=9) if qformer_in_stage else self
        torch.save({"model": {**blip, **elsewhere.qformer_tensors()}}, folder / "blip2.pth")
        stage = self.stage_tensors(qformer=qformer_in_stage, adapter=adapter)
        training = {"optimizer": {"state": {0: {"step": 3}}}, "config": {"run": {"lr": 1e-5}}, "scaler": {}, "epoch": 4}
        torch.save({"model": stage, **training}, folder / "stage4.pth")
        save_file(self.phi_tensors(layout), folder / "phi-2" / "model.safetensors")
        self.phi.config.save_pretrained(folder / "phi-2")
        build_tokenizer().save(str(folder / "phi-2" / "tokenizer.json"))
        sources = {
            "vision": "eva.pth",
            "qformer": "blip2.pth",
            "language_model": "phi-2",
            "stage": "stage4.pth",
            "image_size": self.resolution,
            "vision_layers": 3,
            "vision_heads": 4,
            "qformer_heads": 4,
            "lora_rank": RANK,
            "lora_alpha": ALPHA,
        }
        (folder / "edgevlm-sources.yaml").write_text(yaml.safe_dump({**sources, **fields}))


def plain(tensors: dict[str, Any]) -> dict[str, Tensor]:
    """Tensors of their own, as a file holds them."""
    return {name: value.detach().clone().contiguous() for name, value in tensors.items()}
