"""From a training state to a checkpoint folder in a family's published layout, ready for `edgevlm export`.

In: the (averaged) weights of a `NanoVLM`, the family's layout writer and a model card. Out: a folder with the weights
in float16, the configuration, the tokenizer and `README.md`, replaced as a whole.
"""

from collections.abc import Callable
from pathlib import Path

from tokenizers import Tokenizer
from torch import Tensor

from edgevlm.atomic import atomic_folder, write_text
from edgevlm.zoo.nano import NanoSpec

Write = Callable[[Path, NanoSpec, dict[str, Tensor], Tokenizer], None]
_AUXILIARY = ("heads.", "features_norm.", "place.", "seen_place.", "region_heads.")


def publish(
    folder: Path, write: Write, spec: NanoSpec, weights: dict[str, Tensor], tokenizer: Tokenizer, card: str
) -> None:
    """Write the checkpoint atomically, replacing what is there. The auxiliary heads are left out.

    Args:
        write: the family's layout writer.
        weights: a state dict of `NanoVLM`.
        card: the text of the model card.
    """
    tensors = {
        name: value.half() if value.is_floating_point() else value
        for name, value in weights.items()
        if not name.startswith(_AUXILIARY)
    }
    with atomic_folder(folder, replace=True) as temporary:
        write(temporary, spec, tensors, tokenizer)
        write_text(temporary / "README.md", card)
