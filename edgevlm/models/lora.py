"""LoRA factors (arXiv 2106.09685) and merging them: W + scale * B A.

In: the factors of one matrix as peft writes them, A `[rank, in]` and B `[out, rank]`. Out: the merged matrix in the
dtype of W, computed in float32, of all rows of B or of some.
"""

from __future__ import annotations

from torch import Tensor

from edgevlm.errors import CheckpointError


def check_factors(
    name: str, a: tuple[int, ...], b: tuple[int, ...], *, rank: int, shape: tuple[int, int], where: str
) -> None:
    """Refuse factors that do not fit the rank or their matrix `shape` (out, in).

    Raises:
        CheckpointError: names the factor, its shape and the one that is needed.
    """
    for factor, have, need in (("lora_A", a, (rank, shape[1])), ("lora_B", b, (shape[0], rank))):
        if have != need:
            wrong_rank = len(have) == 2 and have[0 if factor == "lora_A" else 1] != rank
            raise CheckpointError(
                f"{name}.{factor} has shape {list(have)} instead of {list(need)}"
                + (f": its rank is not {rank}" if wrong_rank else ""),
                where,
                "state lora_rank and lora_alpha of the training" if wrong_rank else "name files of the same model",
            )


def merge(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """`weight` `[out, in]` plus `scale` times B `[out, rank]` times A `[rank, in]`."""
    return (weight.float() + scale * (b.float() @ a.float())).to(weight.dtype)
