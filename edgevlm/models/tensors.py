"""Putting checkpoint tensors into modules: name and shape checks, assignment without copies, comparison by data."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgevlm.errors import CheckpointError

_ROWS_AT_ONCE = 4096


def check_names_and_shapes(
    expected: dict[str, tuple[int, ...]],
    found: dict[str, tuple[int, ...]],
    optional: set[str],
    published: dict[str, str],
    where: str,
) -> None:
    """Compare the tensors of a checkpoint with those of the model, by IR name.

    Args:
        expected: shape by IR name.
        found: shape by IR name.
        optional: IR names that may be absent.
        published: the name in the file by IR name, for messages.
        where: the checkpoint, for messages.

    Raises:
        CheckpointError: names the first tensor that is unknown, missing or mis-shaped.
    """
    hint = "download the checkpoint again, or check that config.json belongs to it"
    for name in sorted(set(found) - set(expected)):
        raise CheckpointError(f"unknown tensor {published[name]}", where, hint)
    for name in sorted(set(expected) - set(found) - optional):
        raise CheckpointError(f"tensor {name} is missing", where, hint)
    for name, shape in sorted(found.items()):
        if shape != expected[name]:
            raise CheckpointError(
                f"tensor {published[name]} has shape {list(shape)} instead of {list(expected[name])}", where, hint
            )


def assign(module: nn.Module, tensors: dict[str, Tensor], prefix: str) -> None:
    """Make the tensors under `prefix` the parameters of a meta-device module, without copying them.

    Raises:
        CheckpointError: a tensor does not hold floating-point numbers.
    """
    state = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    for name, value in state.items():
        if not value.is_floating_point():
            raise CheckpointError(
                f"tensor {name} holds {value.dtype}", prefix.rstrip("."), "give floating-point weights"
            )
    module.load_state_dict(state, strict=True, assign=True)
    module.requires_grad_(False)
    module.eval()


def same_data(first: Tensor, second: Tensor) -> bool:
    """Whether two matrices are equal element by element, compared in blocks of rows."""
    if first.shape != second.shape:
        return False
    blocks = zip(torch.split(first, _ROWS_AT_ONCE), torch.split(second, _ROWS_AT_ONCE), strict=True)
    return all(torch.equal(a, b) for a, b in blocks)
