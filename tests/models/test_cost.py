"""A vision tower's operations and activations, counted without computing, against torch on real tensors."""

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from edgevlm.models import load, resolve
from edgevlm.models.cost import run_cost, vision_cost


def test_activations_live_as_long_as_something_needs_them() -> None:
    """The input and two rows of 1000 numbers at once; the first is gone when the last row of 20 is made."""
    with torch.device("meta"):
        module = nn.Sequential(nn.Linear(10, 1000), nn.ReLU(), nn.Linear(1000, 20))
        cost = run_cost(module, [torch.zeros(5, 10)])
    assert cost.flops == 2 * 5 * (10 * 1000 + 1000 * 20)
    assert cost.peak_bytes == 4 * 5 * (10 + 1000 + 1000)


def test_half_precision_is_counted_as_float32() -> None:
    with torch.device("meta"):
        module = nn.Linear(8, 8, dtype=torch.float16)
        assert run_cost(module, [torch.zeros(1, 8, dtype=torch.float16)]).peak_bytes >= 4 * 8


@pytest.mark.parametrize("name", ["zoo:nano-fastvlm", "zoo:nano-llava"])
def test_a_tower_costs_what_it_costs_when_it_runs(name: str) -> None:
    model = load(resolve(name))
    size = model.spec.vision.image_size
    # Torch does not count its fused attention on CPUs.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        model.vision.float()(torch.zeros(1, 3, size, size))
    assert vision_cost(model.spec, size, size).flops == pytest.approx(counter.get_total_flops(), rel=1e-3)
