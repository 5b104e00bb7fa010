"""TinyGPT-V from its four published sources, against an independent statement and the published names and shapes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tinygptv_reference import HIDDEN, RANK, Reference

from edgevlm.errors import CheckpointError, InputError
from edgevlm.models import VlmModel, load
from edgevlm.models.checkpoint import Checkpoint
from edgevlm.models.prompt_templates import with_template
from edgevlm.models.tinygptv import PROMPT_TEMPLATES, check_parts, describe, read_spec
from edgevlm.models.tinygptv_sources import Sources, gather
from edgevlm.models.tinygptv_tensors import plan
from edgevlm.prompt import Message, PromptFormatter
from edgevlm.spec import ModelSpec, PromptSpec, QFormerSpec, VitSpec
from edgevlm.tokenizer import Tokenizer

LAYOUTS = Path(__file__).parents[1] / "data" / "layouts"
IMAGE = -200
PROMPT = [3, 70, IMAGE, 7, 812, 99, 31]


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference()


def written(reference: Reference, folder: Path, **options: Any) -> Path:
    """The sources of `reference` in a new folder."""
    reference.write(folder, **options)
    return folder


def change(folder: Path, file: str, **tensors: torch.Tensor | None) -> None:
    """Replace tensors of a source, or remove those that are None; `__` stands for a dot."""
    data = torch.load(folder / file, weights_only=True)
    state = data.get("model", data)
    for name, value in tensors.items():
        name = name.replace("__", ".")
        if value is None:
            del state[name]
        else:
            state[name] = value
    torch.save(data, folder / file)


@pytest.mark.parametrize(
    ("layout", "qformer_in_stage", "adapter"),
    [("old", True, ""), ("current", True, ".default"), ("old", False, ".default")],
)
@torch.no_grad()
def test_features_and_logits_equal_the_reference(
    layout: str, qformer_in_stage: bool, adapter: str, reference: Reference, tmp_path: Path
) -> None:
    """LoRA unmerged, two projections, positions interpolated, both layouts of Phi, the Q-Former here or there."""
    reference.write(tmp_path / "m", layout=layout, qformer_in_stage=qformer_in_stage, adapter=adapter)
    model = load(tmp_path / "m")
    pixels = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(1))
    features = reference.features(pixels)
    assert features.std() > 0.3
    torch.testing.assert_close(model.vision(pixels), features, atol=1e-4, rtol=0)
    embeddings = reference.embeddings(PROMPT, pixels[:1], IMAGE)
    expected = reference.phi(inputs_embeds=embeddings).logits
    logits, _ = model.decoder(embeddings, torch.arange(embeddings.shape[1])[None])
    assert expected.std() > 0.3
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


def test_both_layouts_of_phi_give_the_same_model(reference: Reference, tmp_path: Path) -> None:
    old, current = (load(written(reference, tmp_path / kind, layout=kind)) for kind in ("old", "current"))
    for name, value in old.decoder.state_dict().items():
        assert torch.equal(value, current.decoder.state_dict()[name]), name


def test_lora_counts_alpha_over_rank_times(reference: Reference, tmp_path: Path) -> None:
    once, twice = (load(written(reference, tmp_path / str(a), lora_alpha=a)) for a in (1.0, 2.0))
    name = "layers.1.self_attn.o_proj.weight"
    delta = 1 / RANK * reference.lora["1_dense_B"] @ reference.lora["1_dense_A"]
    added = twice.decoder.get_parameter(name) - once.decoder.get_parameter(name)
    torch.testing.assert_close(added, delta, atol=1e-5, rtol=0)


def test_the_published_training_counts_lora_a_quarter() -> None:
    """What holds where `edgevlm-sources.yaml` says nothing: rank 64, alpha 16."""
    settings = Sources(vision="v", qformer="q", language_model="l", stage="s")
    assert settings.lora_alpha / settings.lora_rank == 0.25
    assert settings.prompt_template is None
    assert (settings.image_size, settings.vision_layers) == (448, 39)


def published(tmp_path: Path, *names: str) -> dict[str, Checkpoint]:
    """The published tensors as checkpoints without data, by layout file; and a Phi-2 in the old layout."""
    found = {}
    for name in names:
        content = json.loads((LAYOUTS / f"{name}.json").read_text())
        shapes = {key: tuple(shape) for key, shape in content.items()}
        found[name] = Checkpoint(tmp_path, shapes, dict.fromkeys(shapes, tmp_path / name), {})
    shapes = {"model.embed_tokens.weight": (51200, 2560), "lm_head.weight": (51200, 2560), "lm_head.bias": (51200,)}
    shapes |= {f"model.final_layernorm.{kind}": (2560,) for kind in ("weight", "bias")}
    for index in range(32):
        path = f"model.layers.{index}."
        for stem, out, width in (
            ("self_attn.query_key_value", 7680, 2560),
            ("self_attn.dense", 2560, 2560),
            ("mlp.fc1", 10240, 2560),
            ("mlp.fc2", 2560, 10240),
        ):
            shapes |= {f"{path}{stem}.weight": (out, width), f"{path}{stem}.bias": (out,)}
        shapes |= {f"{path}input_layernorm.{kind}": (2560,) for kind in ("weight", "bias")}
    found["phi"] = Checkpoint(tmp_path, shapes, dict.fromkeys(shapes, tmp_path / "phi"), {})
    return found


@pytest.mark.parametrize("stage", ["tinygptv_stage4_trainables", "tinygptv_stage_trainables_no_qformer"])
def test_every_published_tensor_is_accepted(stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = published(tmp_path, "tinygptv_eva_448", "tinygptv_stage4_trainables", stage)
    stage4 = files["tinygptv_stage4_trainables"]
    qformer = {k: v for k, v in stage4.shapes.items() if k.startswith(("Qformer", "query_tokens"))}
    blip2 = Checkpoint(tmp_path, qformer, dict.fromkeys(qformer, tmp_path / "blip2"), {})
    opened = {"eva": files["tinygptv_eva_448"], "blip2": blip2, "stage": files[stage], "phi": files["phi"]}
    monkeypatch.setattr("edgevlm.models.tinygptv_sources.open_file", lambda path: opened[path.name])
    monkeypatch.setattr("edgevlm.models.tinygptv_sources.open_checkpoint", lambda path: opened[path.name])
    for name in opened:
        (tmp_path / name).mkdir() if name == "phi" else (tmp_path / name).touch()
    settings = Sources(vision="eva", qformer="blip2", language_model="phi", stage="stage")
    config = {
        "model_type": "phi",
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "partial_rotary_factor": 0.4,
    }
    pieces = gather(tmp_path, settings)
    spec = read_spec(tmp_path, settings, config, pieces)
    parts = plan(pieces, spec, settings, "published")
    check_parts(spec, parts, "published")
    numbers = sum(torch.Size(part.shape).numel() for name, part in parts.items() if name.startswith("decoder."))
    assert numbers == 2_779_694_080 + 81_920  # models specification, 2.2
    encoder, projector = spec.vision.encoder, spec.vision.projector
    assert isinstance(encoder, VitSpec)
    assert isinstance(projector, QFormerSpec)
    assert (encoder.num_hidden_layers, encoder.grid, encoder.hidden_size) == (39, 32, 1408)
    assert (projector.num_hidden_layers, projector.num_queries, projector.hidden_size) == (12, 32, 768)
    assert spec.decoder.rotary_dim == 32


def test_each_tensor_says_which_sources_it_came_from(reference: Reference, tmp_path: Path) -> None:
    model = load(written(reference, tmp_path / "m"))
    assert model.provenance["vision.encoder.patch.weight"] == "eva.pth"
    assert model.provenance["vision.projector.feature_norm.weight"] == "blip2.pth"
    assert model.provenance["vision.projector.queries"] == "stage4.pth"
    assert model.provenance["decoder.layers.0.self_attn.k_proj.weight"] == "phi-2 + stage4.pth"
    assert model.provenance["decoder.layers.0.self_attn.k_proj.bias"] == "phi-2"
    assert model.provenance["decoder.layers.0.input_layernorm.weight"] == "stage4.pth"
    names = {f"vision.{n}" for n in model.vision.state_dict()} | {f"decoder.{n}" for n in model.decoder.state_dict()}
    assert model.provenance.keys() == names
    assert "decoder: 8 tensors from phi-2 + stage4.pth" in model.spec.notes
    assert {path.name for path in model.sources} == {"eva.pth", "blip2.pth", "model.safetensors", "stage4.pth"}


def test_a_stage_without_lora_is_the_first_one(reference: Reference, tmp_path: Path) -> None:
    folder = written(reference, tmp_path / "m")
    state = torch.load(folder / "stage4.pth", weights_only=True)
    kept = {n.replace("base_model.model.", ""): v for n, v in state["model"].items() if "lora_" not in n}
    torch.save({"model": kept}, folder / "stage4.pth")
    dense = load(folder).decoder.get_parameter("layers.0.self_attn.o_proj.weight")
    assert torch.equal(dense, reference.phi.get_parameter("model.layers.0.self_attn.dense.weight"))


def prompt_of(spec: ModelSpec, folder: Path, question: str, images: int = 1) -> str:
    """The prompt as text, with the marker where the image goes."""
    tokenizer = Tokenizer(folder / "phi-2" / "tokenizer.json")
    ids = PromptFormatter(spec.prompt, tokenizer).start([Message("user", question, images)])
    return "".join(spec.prompt.image_marker if i == IMAGE else tokenizer.decode([i]) for i in ids)


@pytest.mark.parametrize(
    ("name", "expected", "second"),
    [
        (None, "[INST] <Img><ImageHere></Img> [vqa] what is it? [/INST]", "[INST] sure? [/INST]"),
        ("eval_vqa", "###Human: <Img><ImageHere></Img> what is it?###Assistant: ", "###Human: sure?###Assistant: "),
        ("human", "###Human: <Img><ImageHere></Img> what is it? ###Assistant: ", "###Human: sure? ###Assistant: "),
    ],
)
def test_the_prompts_are_those_of_the_repository(
    name: str | None, expected: str, second: str, reference: Reference, tmp_path: Path
) -> None:
    spec = load(written(reference, tmp_path / "m"), prompt_template=name).spec
    assert prompt_of(spec, tmp_path / "m", "what is it?") == expected
    assert spec.prompt.stop_strings == ("###",)
    tokenizer = Tokenizer(tmp_path / "m" / "phi-2" / "tokenizer.json")
    turns = [Message("user", "what is it?", 1), Message("assistant", "a cat"), Message("user", "sure?")]
    assert tokenizer.decode(PromptFormatter(spec.prompt, tokenizer).follow_up(turns)) == second
    with pytest.raises(InputError, match="2 images, but this model's template takes 1"):
        prompt_of(spec, tmp_path / "m", "what is it?", images=2)


def test_an_unknown_template_is_refused_with_the_known_ones(reference: Reference, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        load(written(reference, tmp_path / "m"), prompt_template="vicuna")
    assert all(name in caught.value.hint for name in PROMPT_TEMPLATES)
    with pytest.raises(InputError, match="unknown prompt template 'chat'"):
        describe(written(reference, tmp_path / "n", prompt_template="chat"))
    with pytest.raises(InputError) as caught:
        with_template(PromptSpec("{{ messages }}"), {}, "stage4", "the recipe")
    assert "one template" in caught.value.hint


@pytest.mark.parametrize(
    ("file", "tensors", "message"),
    [
        ("stage4.pth", {"query_tokens": torch.zeros(1, 6, 64)}, "two sources disagree: query_tokens .*stage4.*blip2"),
        ("stage4.pth", {"surprise": torch.zeros(1)}, "unknown tensor surprise"),
        ("eva.pth", {"blocks__1__attn__rope": torch.zeros(1)}, "unknown tensor blocks.1.attn.rope in eva.pth"),
        ("stage4.pth", {"llama_proj2__weight": None}, "tensor llama_proj2.weight is missing"),
        ("eva.pth", {"blocks__1__norm1__bias": None}, "layers.1.norm1.bias is missing"),
        ("eva.pth", {"pos_embed": torch.zeros(1, 8, 48)}, "not a square of positions"),
        (
            "eva.pth",
            {"blocks__0__mlp__fc2__weight": torch.zeros(48, 81)},
            r"fc2.weight of eva.pth has shape \[48, 81\]",
        ),
    ],
)
def test_sources_that_do_not_fit_are_refused_by_name(
    file: str, tensors: dict[str, Any], message: str, reference: Reference, tmp_path: Path
) -> None:
    folder = written(reference, tmp_path / "m")
    change(folder, file, **tensors)
    with pytest.raises(CheckpointError, match=message):
        load(folder)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lora_rank": 64}, "lora_A has shape .* its rank is not 64"),
        ({"stage": "../stage4.pth"}, "a relative path leaves the folder"),
        ({"stage": "stage5.pth"}, "a source is missing"),
        ({"stage": "phi-2"}, "a file of the checkpoint is missing"),
        ({"language_model": "eva.pth"}, "a file, not a folder"),
        ({"vision_heads": 7}, "vision_heads: 7 heads do not divide a width of 48"),
        ({"image_size": 50}, "50 is not a multiple of 14"),
        ({"lora_alpha": 0}, "lora_alpha: Input should be greater than 0"),
        ({"epochs": 3}, "epochs: Extra inputs are not permitted"),
    ],
)
def test_what_the_sources_file_says_is_checked(
    fields: dict[str, Any], message: str, reference: Reference, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        load(written(reference, tmp_path / "m", **fields))


@pytest.mark.parametrize("content", ["", "- a\n- b\n", "vision: [1", "vision: eva.pth\n"])
def test_a_sources_file_that_is_no_mapping_of_the_fields_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "edgevlm-sources.yaml").write_text(content)
    with pytest.raises(CheckpointError, match=r"edgevlm-sources\.yaml"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("hidden_act", "relu", "hidden_act 'relu' is not supported"),
        ("model_type", "phi3", "model_type 'phi3' is not supported"),
        ("num_key_value_heads", 1, "num_key_value_heads differs"),
        ("rope_parameters", {"rope_type": "yarn"}, "rope scaling"),
        ("hidden_size", 161, "does not divide"),
    ],
)
def test_a_phi_that_computes_otherwise_is_refused(
    field: str, value: object, message: str, reference: Reference, tmp_path: Path
) -> None:
    folder = written(reference, tmp_path / "m")
    config = json.loads((folder / "phi-2" / "config.json").read_text())
    (folder / "phi-2" / "config.json").write_text(json.dumps({**config, field: value}))
    with pytest.raises(CheckpointError, match=message):
        load(folder)


def test_sources_elsewhere_are_named_by_absolute_paths(reference: Reference, tmp_path: Path) -> None:
    folder = written(reference, tmp_path / "m")
    (folder / "stage4.pth").rename(tmp_path / "stage4.pth")
    sources = yaml.safe_load((folder / "edgevlm-sources.yaml").read_text())
    sources["stage"] = str(tmp_path / "stage4.pth")
    (folder / "edgevlm-sources.yaml").write_text(yaml.safe_dump(sources))
    assert load(folder).provenance["vision.projector.linear.weight"] == str(tmp_path / "stage4.pth")


def test_a_source_with_code_is_refused_and_not_run(reference: Reference, tmp_path: Path) -> None:
    folder = written(reference, tmp_path / "m")
    marker = tmp_path / "ran"

    class Code:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return Path.touch, (marker,)

    torch.save({"model": {}, "optimizer": Code()}, folder / "stage4.pth")
    with pytest.raises(CheckpointError, match="more than tensors"):
        load(folder)
    assert not marker.exists()


def test_a_file_from_before_torch_1_6_is_read(reference: Reference, tmp_path: Path) -> None:
    folder = written(reference, tmp_path / "m")
    expected = {name: value.clone() for name, value in load(folder).vision.state_dict().items()}
    state = torch.load(folder / "eva.pth", weights_only=True)
    torch.save(state, folder / "eva.pth", _use_new_zipfile_serialization=False)
    for name, value in load(folder).vision.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_describe_reads_no_weight(reference: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = written(reference, tmp_path / "m")
    spec = load(folder).spec

    def refuse(_checkpoint: Checkpoint, name: str) -> torch.Tensor:
        raise AssertionError(name)

    monkeypatch.setattr(Checkpoint, "tensor", refuse)
    assert describe(folder) == spec
    assert ModelSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_another_resolution_interpolates_positions_and_keeps_the_tokens(reference: Reference, tmp_path: Path) -> None:
    folder = written(reference, tmp_path / "m")
    native: VlmModel = load(folder, resolution=28)
    assert torch.equal(native.vision.get_parameter("encoder.positions"), reference.positions[0])
    wider = load(folder)
    with torch.no_grad():
        assert wider.vision(torch.rand(1, 3, 56, 56)).shape == (1, 5, HIDDEN)
    assert wider.spec.vision.image_tokens == 5
