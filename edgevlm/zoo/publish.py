"""From a training state to a checkpoint folder in Apple's layout, ready for `edgevlm export`.

In: the (averaged) weights of a `NanoFastVLM` and a model card. Out: a folder with `model.safetensors` in float16, the
configuration, the tokenizer and `README.md`, replaced as a whole.
"""

from pathlib import Path

from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from edgevlm.atomic import atomic_folder, write_text
from edgevlm.zoo.layout import apple_tensor_name, write_configuration
from edgevlm.zoo.nano import NanoSpec
from edgevlm.zoo.tokenizer import IMAGE_TOKEN, save_tokenizer, token_id


def publish(folder: Path, spec: NanoSpec, weights: dict[str, Tensor], tokenizer: Tokenizer, card: str) -> None:
    """Write the checkpoint atomically, replacing what is there. The auxiliary heads are left out.

    Args:
        weights: a state dict of `NanoFastVLM`.
        card: the text of the model card.
    """
    tensors = {
        apple_tensor_name(name): (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in weights.items()
        if not name.startswith(("heads.", "place.", "seen_place."))
    }
    with atomic_folder(folder, replace=True) as temporary:
        save_file(tensors, temporary / "model.safetensors", metadata={"format": "pt"})
        (temporary / "model.safetensors").chmod(0o644)
        write_configuration(
            temporary,
            spec.encoder,
            spec.decoder,
            spec.image_size,
            dtype="float16",
            stop_id=token_id(tokenizer, "<|im_end|>"),
            image_id=token_id(tokenizer, IMAGE_TOKEN),
        )
        save_tokenizer(tokenizer, temporary, spec.decoder.max_position_embeddings)
        write_text(temporary / "README.md", card)
