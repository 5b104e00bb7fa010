"""The LLaVA class in published sizes with random weights, in transformers' layout; of `edgevlm zoo synth`.

LLaVA-1.5-7B, LLaVA-OneVision-0.5B, SmolVLM-256M and -500M, InternVL3-1B. In: a folder and a name. Out:
`model.safetensors` (bfloat16, every published tensor but the redundant head of tied models, layers that the model does
not use included), configuration and processor files, and a tokenizer whose special tokens have ids of their own above
the text's.
"""

import json
from pathlib import Path

from edgevlm.atomic import write_text
from edgevlm.progress import Report
from edgevlm.zoo.random_weights import write_random
from edgevlm.zoo.synth_llava_files import configuration, special_tokenizer
from edgevlm.zoo.synth_llava_sizes import SPECS, check_resolution, special_ids
from edgevlm.zoo.synth_llava_sizes import tiny as small
from edgevlm.zoo.synth_llava_tensors import layout, moments


def write(
    folder: Path,
    name: str,
    *,
    tiny: bool,
    seed: int,
    resolution: int | None,
    report: Report | None,
    hollow: bool = False,
) -> None:
    """Write everything but the model card into `folder`.

    Args:
        folder: exists.
        name: one of `SPECS`.
        tiny: the same layout with small sizes.
        seed: of the weights.
        resolution: only the published one, since these towers have a table of positions.
        report: called with (bytes written, bytes in all, tensor name) after each tensor.
        hollow: leave holes where weights would be.

    Raises:
        InputError: another resolution.
    """
    spec = small(SPECS[name]) if tiny else SPECS[name]
    check_resolution(name, spec, resolution)
    ids = special_ids(spec)
    for file, content in configuration(spec, ids).items():
        write_text(folder / file, json.dumps(content, indent=2) + "\n")
    write_text(folder / "tokenizer.json", special_tokenizer(ids))
    roles = layout(spec)
    shapes = {published: shape for published, (_, shape) in roles.items()}
    with (folder / "model.safetensors").open("wb") as weights:
        of_role = lambda tensor, shape: moments(roles[tensor][0], shape, spec)  # noqa: E731
        write_random(weights, shapes, of_role, seed, report, hollow=hollow)
