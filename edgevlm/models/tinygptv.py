"""TinyGPT-V (arXiv 2312.16862): EVA-ViT-g, BLIP-2's Q-Former, one linear layer and a Phi-2 with more norms.

Its weights come from four published sources. A folder with `edgevlm-sources.yaml`, which names them, is a TinyGPT-V;
`describe` reads its numbers, `load` the weights too: LoRA merged, the fused attention taken apart, the two projections
made one, and for every tensor the sources it came from.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgevlm.errors import CheckpointError
from edgevlm.models.checkpoint import read_json
from edgevlm.models.decoder import Decoder
from edgevlm.models.phi import phi_decoder, read_phi_config
from edgevlm.models.prompt_templates import with_template
from edgevlm.models.tensors import assign, check_names_and_shapes
from edgevlm.models.tinygptv_sources import SOURCES_FILE, Pieces, Sources, gather, path_of, read_sources
from edgevlm.models.tinygptv_tensors import Parts, plan
from edgevlm.models.tokenizer_files import read_licence, tokenizer_facts
from edgevlm.models.vlm import VlmModel, build_vision, check_resolution
from edgevlm.spec import ModelSpec, PreprocessSpec, PromptSpec, QFormerSpec, VisionSpec, VitSpec

MODEL_TYPES: tuple[str, ...] = ()
MARKER = SOURCES_FILE
DEFAULT_TEMPLATE = "stage4"

_MARKER = "<ImageHere>"
_STOP = "###"
_HUMAN = (
    "{{% for message in messages %}}"
    "{{% if message['role'] == 'user' %}}###Human: {{{{ message['content'] }}}}{gap}###Assistant: "
    "{{% else %}}{{{{ message['content'] }}}}{{% endif %}}{{% endfor %}}"
)


def _template(chat_template: str, after_images: str = "") -> PromptSpec:
    image_text = f"<Img>{_MARKER}</Img> "
    return PromptSpec(chat_template, image_marker=_MARKER, image_text=image_text, after_images=after_images)


#: What the repository asks with: in the training of stage 4 and its demo, in its VQA evaluation, and in stages 1 to 3.
PROMPT_TEMPLATES = {
    "stage4": _template(
        "{% for message in messages %}"
        "{% if message['role'] == 'user' %}[INST] {{ message['content'] }} [/INST]"
        "{% else %}{{ message['content'] }}{% endif %}{% endfor %}",
        after_images="[vqa] ",
    ),
    "eval_vqa": _template(_HUMAN.format(gap="")),
    "human": _template(_HUMAN.format(gap=" ")),
}


def describe(folder: Path, resolution: int | None = None) -> ModelSpec:
    """The numbers of the model in `folder`, from names and shapes alone: no weight is read.

    Args:
        folder: with `edgevlm-sources.yaml`.
        resolution: input pixels; None takes those that the file states.

    Raises:
        CheckpointError: a source cannot be used, or they do not fit together.
        InputError: the resolution is not a multiple of the patch, or there is no such prompt template.
    """
    return _planned(folder, resolution)[0]


def load(folder: Path, config: dict[str, Any], resolution: int | None = None) -> VlmModel:
    """Load the four sources. Tensors stay memory-mapped; what is made of several is computed here, one at a time.

    Raises:
        CheckpointError: a source cannot be used, a tensor is missing, unknown or mis-shaped, or two sources disagree.
        InputError: the resolution is not a multiple of the patch, or there is no such prompt template.
    """
    del config  # the folder has none
    spec, parts, files, sources = _planned(folder, resolution)
    with torch.device("meta"):
        vision, decoder = build_vision(spec), Decoder(spec.decoder)
    tensors: dict[str, Tensor] = {name: part.make() for name, part in parts.items()}
    assign(vision, tensors, "vision.")
    assign(decoder, tensors, "decoder.")
    return VlmModel(spec, vision, decoder, files, sources, provenance=_provenance(parts))


def _planned(folder: Path, resolution: int | None) -> tuple[ModelSpec, Parts, dict[str, Path], tuple[Path, ...]]:
    """Spec, parts (checked against the modules), tokenizer files and weight files."""
    settings = read_sources(folder)
    if resolution is not None:
        settings = settings.model_copy(update={"image_size": resolution})
    pieces = gather(folder, settings)
    where = str(folder / SOURCES_FILE)
    phi = path_of(folder, settings.language_model)
    spec = read_spec(folder, settings, read_json(phi / "config.json"), pieces)
    tokenizer = tokenizer_facts(phi)
    spec = replace(
        spec,
        prompt=replace(
            spec.prompt,
            image_token_id=tokenizer.added.get(_MARKER, tokenizer.size),
            stop_token_ids=tokenizer.stop_ids(("<|endoftext|>",), spec.prompt.stop_token_ids),
        ),
    )
    parts = plan(pieces, spec, settings, where)
    check_parts(spec, parts, where)
    files = {path for piece in pieces.values() for path in (piece.checkpoint.files[piece.name],)}
    return replace(spec, notes=_notes(parts)), parts, tokenizer.files, tuple(sorted(files))


def check_parts(spec: ModelSpec, parts: Parts, where: str) -> None:
    """Compare the parts with the modules' tensors, on the meta device.

    Raises:
        CheckpointError: one is missing, unknown or mis-shaped.
    """
    with torch.device("meta"):
        vision, decoder = build_vision(spec), Decoder(spec.decoder)
    expected = {f"vision.{name}": tuple(value.shape) for name, value in vision.state_dict().items()}
    expected |= {f"decoder.{name}": tuple(value.shape) for name, value in decoder.state_dict().items()}
    published = {
        name: " and ".join(f"{piece.name} of {piece.source}" for piece in part.pieces) for name, part in parts.items()
    }
    check_names_and_shapes(expected, {name: part.shape for name, part in parts.items()}, set(), published, where)


def read_spec(folder: Path, settings: Sources, phi: dict[str, Any], pieces: Pieces) -> ModelSpec:
    """The spec from the settings, Phi's configuration and the tensors' shapes; ids are the configuration's.

    Raises:
        CheckpointError: a tensor is missing or mis-shaped, or the configuration asks for what is not supported.
    """
    where = str(path_of(folder, settings.language_model) / "config.json")
    config = read_phi_config(phi, where)
    (rows, _) = _shape(pieces, "phi.model.embed_tokens.weight", 2, folder)
    decoder = replace(phi_decoder(config, rows), qk_norm="layer", post_attention_norm="rms")
    if decoder.num_key_value_heads != decoder.num_attention_heads:
        raise CheckpointError("config.json: num_key_value_heads differs from num_attention_heads", where)
    encoder = _encoder(settings, pieces, folder)
    projector = _qformer(settings, pieces, folder)
    prompt = with_template(
        replace(
            PROMPT_TEMPLATES[DEFAULT_TEMPLATE], stop_strings=(_STOP,), stop_token_ids=_ids(config.stops), max_images=1
        ),
        PROMPT_TEMPLATES,
        settings.prompt_template or DEFAULT_TEMPLATE,
        str(folder / SOURCES_FILE),
    )
    spec = ModelSpec(
        family="tinygptv",
        name=folder.resolve().name,
        vision=VisionSpec(encoder, projector, settings.image_size, projector.num_queries),
        decoder=decoder,
        preprocess=PreprocessSpec(
            settings.image_size,
            fit="stretch",
            mean=(0.48145466, 0.4578275, 0.40821073),
            std=(0.26862954, 0.26130258, 0.27577711),
        ),
        prompt=prompt,
        model_type="tinygptv",
        model_class="TinyGPTVForConditionalGeneration",
        licence=read_licence(folder),
    )
    check_resolution(spec, settings.image_size)
    return spec


def _ids(values: list[int | None]) -> tuple[int, ...]:
    return tuple(value for value in values if value is not None)


def _encoder(settings: Sources, pieces: Pieces, folder: Path) -> VitSpec:
    width, _, patch, _ = _shape(pieces, "visual_encoder.patch_embed.proj.weight", 4, folder)
    blocks = {name.split(".")[2] for name in pieces if name.startswith("visual_encoder.blocks.")}
    _divides(settings.vision_heads, width, "vision_heads", folder)
    return VitSpec(
        hidden_size=width,
        intermediate_size=_shape(pieces, "visual_encoder.blocks.0.mlp.fc1.weight", 2, folder)[0],
        num_hidden_layers=len(blocks),
        num_attention_heads=settings.vision_heads,
        patch_size=patch,
        grid=settings.image_size // max(patch, 1),
        norm_eps=1e-6,
        class_token=True,
        keep_class_token=True,
    )


def _qformer(settings: Sources, pieces: Pieces, folder: Path) -> QFormerSpec:
    _, queries, width = _shape(pieces, "query_tokens", 3, folder)
    layers = {name.split(".")[4] for name in pieces if name.startswith("Qformer.bert.encoder.layer.")}
    _divides(settings.qformer_heads, width, "qformer_heads", folder)
    fc1 = "Qformer.bert.encoder.layer.0.intermediate_query.dense.weight"
    return QFormerSpec(
        hidden_size=width,
        intermediate_size=_shape(pieces, fc1, 2, folder)[0],
        num_hidden_layers=len(layers),
        num_attention_heads=settings.qformer_heads,
        num_queries=queries,
    )


def _divides(heads: int, width: int, field: str, folder: Path) -> None:
    if width % heads:
        raise CheckpointError(
            f"{field}: {heads} heads do not divide a width of {width}", str(folder / SOURCES_FILE), "state the heads"
        )


def _shape(pieces: Pieces, name: str, dimensions: int, folder: Path) -> tuple[int, ...]:
    piece = pieces.get(name)
    if piece is None:
        raise CheckpointError(
            f"tensor {name.removeprefix('phi.').removeprefix('visual_encoder.')} is missing",
            str(folder / SOURCES_FILE),
            "check that each source is the file that it is named to be",
        )
    if len(piece.shape) != dimensions or not all(piece.shape):
        raise CheckpointError(
            f"tensor {piece.name} of {piece.source} has shape {list(piece.shape)}, not {dimensions} dimensions",
            str(folder / SOURCES_FILE),
        )
    return piece.shape


def _provenance(parts: Parts) -> dict[str, str]:
    """The sources of each tensor, in order; what no source has is the family's own."""
    return {
        name: " + ".join(dict.fromkeys(piece.source for piece in part.pieces)) or "no source (zero)"
        for name, part in parts.items()
    }


def _notes(parts: Parts) -> tuple[str, ...]:
    """How many tensors of each component came from where, for the manifest."""
    counts = Counter(
        (component, source)
        for name, source in _provenance(parts).items()
        for component in (".".join(name.split(".")[: 2 if name.startswith("vision.") else 1]),)
    )
    return tuple(f"{component}: {count} tensors from {source}" for (component, source), count in counts.items())
