"""Synthetic LLaVA-Minis: the published names and shapes, mixed dtypes, alive activations, loadable by us."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from edgevlm.errors import InputError
from edgevlm.models import load
from edgevlm.zoo.synth import synth
from edgevlm.zoo.synth_llava_mini import SPECS, layout, write

LAYOUTS = Path(__file__).parents[1] / "data" / "layouts"


def test_full_size_layout_is_the_published_one() -> None:
    published = json.loads((LAYOUTS / "llavamini_llama31_8b.json").read_text())["tensors"]
    assert {name: list(shape) for name, (_, shape) in layout(SPECS["llava-mini-8b"]).items()} == published


@pytest.mark.parametrize("name", SPECS)
def test_it_loads_and_activations_neither_vanish_nor_explode(name: str, tmp_path: Path) -> None:
    synth(name, tmp_path / "m", tiny=True)
    model = load(tmp_path / "m")
    spec = model.spec
    assert model.fusion is not None
    assert spec.fusion is not None
    llama = name == "llava-mini-8b"
    assert (spec.decoder.rope_scaling is not None, spec.decoder.tied_embeddings) == (llama, not llama)
    assert spec.prompt.stop_token_ids == ((1025, 1032, 1033) if llama else (1024, 1026))
    with torch.inference_mode():
        pixels = 2 * torch.rand(1, *spec.vision.input_shape, generator=torch.Generator().manual_seed(0)) - 1
        image = model.vision.float()(pixels)
        decoder = model.decoder.float()
        text = decoder.embed_tokens(torch.arange(1, 9)[None])
        fused = model.fusion.float()(image, text)
        logits, _ = decoder(fused, torch.arange(fused.shape[1])[None])
    level = float(text.square().mean().sqrt())
    for rows in (image[:, :-1], image[:, -1:], fused[:, :1], fused[:, 1:]):
        assert 0.2 * level < float(rows.square().mean().sqrt()) < 20 * level
    # The fusion changes the text, and is not all there is of it.
    assert 0.3 < float((fused[:, 1:] - text).square().mean().sqrt()) / level < 3
    assert 0.3 < float(logits.std()) < 20


def test_shards_are_listed_and_differ_in_dtype(tmp_path: Path) -> None:
    seen: list[float] = []
    synth("llava-mini-8b", tmp_path / "m", tiny=True, report=lambda done, total, _name: seen.append(done / total))
    index = json.loads((tmp_path / "m" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) == 4
    dtypes: dict[str, set[torch.dtype]] = {"vision_tower": set(), "": set()}
    least = 1.0
    for file in sorted(set(index["weight_map"].values())):
        with safe_open(tmp_path / "m" / file, "pt") as shard:
            for name in shard.keys():  # noqa: SIM118  (safe_open has no __iter__)
                assert index["weight_map"][name] == file
                tensor = shard.get_tensor(name)
                dtypes["vision_tower" if "vision_tower" in name else ""].add(tensor.dtype)
                least = min(least, float(tensor.abs().min()))
    assert dtypes == {"vision_tower": {torch.float32}, "": {torch.bfloat16}}
    assert least >= torch.finfo(torch.float16).smallest_normal
    assert seen == sorted(seen)
    assert seen[-1] == 1


def test_another_resolution_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="published for 336 pixels"):
        write(tmp_path, "llava-mini-8b", tiny=False, seed=0, resolution=672, report=None)
    assert list(tmp_path.iterdir()) == []
