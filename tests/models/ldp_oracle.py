# ruff: noqa: E402
"""Run MobileVLM's first projector as published, from torchvision's and timm's blocks; started as a process of its own.

In: a folder. Out, in that folder: `ldp.safetensors` with the weights by their published names, `features`, `outputs`.
"""

import sys
import types
from functools import partial
from pathlib import Path

sys.modules["torchvision._meta_registrations"] = types.ModuleType("torchvision._meta_registrations")

import torch
from safetensors.torch import save_file
from timm.layers import LayerNormAct2d
from torch import nn
from torchvision.models.mobilenetv3 import InvertedResidual, InvertedResidualConfig
from torchvision.ops.misc import SqueezeExcitation

FEATURES, WIDTH, GRID = 24, 48, 6


@torch.no_grad()
def main(folder: Path) -> None:
    """Write weights, input and output into `folder`."""
    torch.manual_seed(0)
    norm = partial(LayerNormAct2d, act_layer=None)
    squeeze = partial(SqueezeExcitation, scale_activation=nn.Hardsigmoid)
    blocks = [
        InvertedResidual(InvertedResidualConfig(WIDTH, 3, WIDTH, WIDTH, True, "HS", stride, 1, 1), norm, squeeze)
        for stride in (1, 2)
    ]
    model = nn.ModuleDict(
        {
            "mlp": nn.Sequential(nn.Identity(), nn.Linear(FEATURES, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH)),
            "mb_block": nn.Sequential(nn.Identity(), *blocks),
        }
    ).eval()
    for parameter in model.parameters():
        scale = parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 0.3
        parameter.copy_(torch.randn(parameter.shape) * scale + (parameter.dim() == 1))
    features = torch.randn(2, GRID**2, FEATURES)
    maps = model["mlp"](features).transpose(1, 2).reshape(2, WIDTH, GRID, GRID)
    outputs = model["mb_block"](maps).flatten(2).transpose(1, 2)
    state = {f"model.{name}": value.contiguous() for name, value in model.state_dict().items()}
    save_file({**state, "features": features, "outputs": outputs.contiguous()}, folder / "ldp.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
