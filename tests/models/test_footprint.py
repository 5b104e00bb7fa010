"""Letting go of memory must not change a weight, mapped or not."""

from pathlib import Path

import psutil
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from edgevlm.models.footprint import release


def file_system(folder: Path) -> str:
    """The type of the file system that holds `folder`."""
    mounts = {Path(mount.mountpoint): mount.fstype for mount in psutil.disk_partitions(all=True)}
    return next(mounts[parent] for parent in (folder, *folder.parents) if parent in mounts)


def test_weights_survive_and_mapped_pages_leave(tmp_path: Path) -> None:
    expected = torch.randn(4096, 4096)
    save_file({"weight": expected}, tmp_path / "model.safetensors")
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        mapped = file.get_tensor("weight")
    module, heap = nn.Linear(4096, 4096, bias=False), nn.Linear(4096, 512)
    module.weight = nn.Parameter(mapped, requires_grad=False)
    kept = heap.weight.detach().clone()
    assert torch.equal(module.weight, expected)
    before = psutil.Process().memory_info().rss
    release(module, heap)
    if file_system(tmp_path) != "tmpfs":  # whose pages have nowhere else to go
        assert psutil.Process().memory_info().rss < before - 32 * 2**20
    assert torch.equal(module.weight, expected)
    assert torch.equal(heap.weight, kept)
