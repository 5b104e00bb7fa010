"""Synthetic checkpoints of the LLaVA class: transformers' names and shapes, alive activations, loadable by us."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from edgevlm.errors import InputError
from edgevlm.models import load
from edgevlm.spec import VitSpec
from edgevlm.zoo.synth import synth
from edgevlm.zoo.synth_llava import write
from edgevlm.zoo.synth_llava_files import configuration
from edgevlm.zoo.synth_llava_sizes import SPECS, special_ids
from edgevlm.zoo.synth_llava_tensors import layout

#: What transformers builds and published checkpoints do not hold or do not need: SigLIP's pooling head, buffers, and
#: the tied head.
_ABSENT = ("vision_tower.head.", "position_ids", "inv_freq")


@pytest.mark.parametrize("name", sorted(SPECS))
def test_full_size_names_and_shapes_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    spec = SPECS[name]
    (tmp_path / "config.json").write_text(json.dumps(configuration(spec, special_ids(spec))["config.json"]))
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(tmp_path))
    expected = {
        key: tuple(value.shape)
        for key, value in model.state_dict().items()
        if not any(part in key for part in _ABSENT) and not (key == "lm_head.weight" and spec.decoder.tied_embeddings)
    }
    assert {key: shape for key, (_, shape) in layout(spec).items()} == expected


@pytest.mark.parametrize("name", sorted(SPECS))
def test_it_loads_and_activations_neither_vanish_nor_explode(name: str, tmp_path: Path) -> None:
    synth(name, tmp_path / "m", tiny=True)
    model = load(tmp_path / "m")
    encoder = model.spec.vision.encoder
    assert isinstance(encoder, VitSpec)
    levels = []
    x = torch.rand(1, 3, *2 * [model.spec.vision.image_size], generator=torch.Generator().manual_seed(0))
    vision, decoder = model.vision.float(), model.decoder.float()
    for layer in (*vision.encoder.layers, *decoder.layers):
        layer.register_forward_hook(
            lambda _module, _inputs, output: levels.append(
                float((output[0] if isinstance(output, tuple) else output).square().mean().sqrt())
            )
        )
    with torch.inference_mode():
        image = vision(2 * x - 1)
        text = decoder.embed_tokens(torch.arange(8)[None])
        x = torch.cat((text, image), dim=1)
        logits, _ = decoder(x, torch.arange(x.shape[1])[None])
    assert len(levels) == encoder.num_hidden_layers + 2
    assert all(0.05 < level < 20 for level in levels), levels
    assert 0.3 < float(logits.std()) < 20
    assert 0.2 < float(image.square().mean().sqrt() / text.square().mean().sqrt()) < 20


def test_another_resolution_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="published for 512 pixels"):
        write(tmp_path, "smolvlm-256m", tiny=False, seed=0, resolution=256, report=None)
    assert list(tmp_path.iterdir()) == []
