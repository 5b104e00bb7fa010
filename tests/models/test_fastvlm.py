"""FastVLM against transformers, and against the published names and shapes."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from edgevlm.errors import CheckpointError, InputError
from edgevlm.models import load
from edgevlm.models.fastvlm import apple_name, published_names, read_spec
from edgevlm.models.loading import build_checked
from edgevlm.models.tokenizer_files import TokenizerFacts
from edgevlm.models.vlm import VlmModel
from edgevlm.spec import FastViTHDSpec

LAYOUTS = Path(__file__).parents[1] / "data" / "layouts"
TOKENIZER = TokenizerFacts({}, {"<|im_end|>": 151645}, 151646, (151645,), "unknown")

PUBLISHED = {
    # Widths of the published configurations (models specification, 1.3).
    "fastvlm_apple_0.5b": (896, 4864, 24, 14, 2, True),
    "fastvlm_apple_1.5b": (1536, 8960, 28, 12, 2, True),
    "fastvlm_apple_7b": (3584, 18944, 28, 28, 4, False),
    "hf_fastvlm_05b": (896, 4864, 24, 14, 2, True),
}


def layout(name: str) -> dict[str, tuple[int, ...]]:
    """Published tensor names and shapes."""
    return {key: tuple(shape) for key, shape in json.loads((LAYOUTS / f"{name}.json").read_text()).items()}


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_tensor_is_accepted(name: str, tmp_path: Path) -> None:
    hidden, ffn, layers, heads, kv_heads, tied = PUBLISHED[name]
    config = {
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "mm_vision_tower": "mobileclip_l_1024",
    }
    published = published_names(layout(name))
    if tied:
        published.pop("decoder.lm_head.weight", None)
    shapes = {key: layout(name)[source] for key, source in published.items()}
    spec = read_spec(tmp_path, config, shapes, tied=tied, tokenizer=TOKENIZER)
    vision, decoder = build_checked(spec, shapes, published, name, batchnorm=True)
    assert isinstance(spec.vision.encoder, FastViTHDSpec)
    assert spec.vision.encoder.depths == (2, 12, 24, 4, 2)
    assert spec.vision.encoder.dims == (96, 192, 384, 768, 1536)
    assert spec.vision.image_tokens == 256
    assert {parameter.device.type for parameter in decoder.parameters()} == {"meta"}
    if name == "fastvlm_apple_0.5b":
        assert sum(parameter.numel() for parameter in decoder.parameters()) == 494_032_768
        # Folding turns the weight, bias, mean and variance of 44 BatchNorms into 44 convolution biases.
        assert sum(p.numel() for p in vision.encoder.parameters()) < 122_714_208


def test_both_layouts_name_the_same_tensors() -> None:
    apple = set(layout("fastvlm_apple_0.5b"))
    renamed = {apple_name(name) for name in layout("hf_fastvlm_05b")}
    assert renamed | {"model.vision_tower.vision_tower.model.head.proj", "lm_head.weight"} == apple


def run(model: VlmModel, oracle: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Image features and logits of our modules on the oracle's inputs."""
    inputs = load_file(oracle / "inputs.safetensors")
    with torch.no_grad():
        features = model.vision(inputs["pixels"])
        ids = inputs["ids"]
        embeddings = model.decoder.embed_tokens(ids)
        embeddings[ids == model.spec.prompt.image_token_id] = features[0]
        logits, _ = model.decoder(embeddings, torch.arange(ids.shape[1])[None])
    return features[0], logits


def apple_checkpoint(oracle: Path, folder: Path, *, keep_head: bool = False) -> Path:
    """The oracle's checkpoint in Apple's layout."""
    config = json.loads((oracle / "hf" / "config.json").read_text())
    flat = {**config["text_config"], "model_type": "llava_qwen2", "mm_vision_tower": "mobileclip_l_128"}
    (folder / "config.json").write_text(json.dumps(flat))
    shutil.copy(oracle / "hf" / "tokenizer.json", folder)
    tensors = {apple_name(name): value for name, value in load_file(oracle / "hf" / "model.safetensors").items()}
    tensors["model.vision_tower.vision_tower.model.head.proj"] = torch.zeros(512, 8)
    if keep_head:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("kind", ["hf", "apple"])
def test_logits_equal_transformers(kind: str, fastvlm_oracle: Path, tmp_path: Path) -> None:
    folder = fastvlm_oracle / "hf" if kind == "hf" else apple_checkpoint(fastvlm_oracle, tmp_path)
    model = load(folder, resolution=128)
    expected = load_file(fastvlm_oracle / "outputs.safetensors")
    features, logits = run(model, fastvlm_oracle)
    assert expected["logits"].std() > 0.1
    torch.testing.assert_close(features, expected["features"], atol=1e-4, rtol=0)
    torch.testing.assert_close(logits, expected["logits"], atol=1e-4, rtol=0)


def test_head_is_tied_by_its_data(fastvlm_oracle: Path, tmp_path: Path) -> None:
    folder = apple_checkpoint(fastvlm_oracle, tmp_path, keep_head=True)
    assert load(folder).spec.decoder.tied_embeddings
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"][3, 5] += 1
    save_file(tensors, folder / "model.safetensors")
    model = load(folder)
    assert not model.spec.decoder.tied_embeddings
    assert torch.equal(model.decoder.lm_head.weight, tensors["lm_head.weight"])


def test_vocabulary_rows_come_from_the_tensor(fastvlm_oracle: Path, tmp_path: Path) -> None:
    folder = apple_checkpoint(fastvlm_oracle, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][:301].clone()
    save_file(tensors, folder / "model.safetensors")
    assert load(folder).spec.decoder.vocab_size == 301


def test_spec_survives_json(fastvlm_oracle: Path, tmp_path: Path) -> None:
    spec = load(apple_checkpoint(fastvlm_oracle, tmp_path)).spec
    assert type(spec).from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    assert spec.prompt.stop_token_ids == (299,)
    assert spec.prompt.image_token_id == 300


def test_any_multiple_of_64_is_a_resolution(fastvlm_oracle: Path) -> None:
    model = load(fastvlm_oracle / "hf", resolution=192)
    with torch.no_grad():
        features = model.vision(torch.rand(1, 3, 192, 192))
    assert features.shape == (1, model.spec.vision.image_tokens, 64)
    with pytest.raises(InputError, match="multiple of 64"):
        load(fastvlm_oracle / "hf", resolution=1000)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", "model.norm.weight|decoder.norm.weight is missing"),
        ("extra", "unknown tensor model.surprise"),
        ("shape", r"model.norm.weight has shape \[63\] instead of \[64\]"),
        ("truncated", "not a complete safetensors file"),
    ],
)
def test_bad_checkpoints_are_refused_by_name(change: str, message: str, fastvlm_oracle: Path, tmp_path: Path) -> None:
    folder = apple_checkpoint(fastvlm_oracle, tmp_path)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    if change == "missing":
        del tensors["model.norm.weight"]
    elif change == "extra":
        tensors["model.surprise"] = torch.zeros(1)
    elif change == "shape":
        tensors["model.norm.weight"] = torch.zeros(63)
    save_file(tensors, file)
    if change == "truncated":
        file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=message):
        load(folder)


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ("vision_config", {"architecture": "fastvit_mci2"}, "architecture 'fastvit_mci2' is not supported"),
        ("vision_config", {"hidden_size": 3072}, "hidden_size 3072 is not supported"),
        ("", {"vision_feature_layer": -2}, "vision_feature_layer -2 is not supported"),
        ("", {"multimodal_projector_bias": False}, "multimodal_projector_bias False is not supported"),
    ],
)
def test_transformers_configurations_that_differ_are_refused(
    section: str, changes: dict[str, object], message: str, fastvlm_oracle: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(fastvlm_oracle / "hf", tmp_path / "hf")
    config = json.loads((folder / "config.json").read_text())
    (config[section] if section else config).update(changes)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        load(folder)


def test_the_processor_file_of_either_version_decides_the_pixels(fastvlm_oracle: Path, tmp_path: Path) -> None:
    """Transformers 5 writes it inside `processor_config.json`."""
    images = {"crop_size": {"height": 192, "width": 192}, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    for name, content in (
        ("preprocessor_config.json", images),
        ("processor_config.json", {"patch_size": 64, "image_processor": images}),
    ):
        folder = shutil.copytree(fastvlm_oracle / "hf", tmp_path / name)
        (folder / name).write_text(json.dumps(content))
        spec = load(folder).spec
        assert (spec.vision.image_size, spec.vision.image_tokens) == (192, 9)
        assert (spec.preprocess.mean, spec.preprocess.std) == ((0.5,) * 3, (0.25,) * 3)


def test_a_pickle_with_code_is_refused_and_not_run(fastvlm_oracle: Path, tmp_path: Path) -> None:
    folder = apple_checkpoint(fastvlm_oracle, tmp_path)
    (folder / "model.safetensors").unlink()
    marker = tmp_path / "ran"

    class Code:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (marker,)  # type: ignore[return-value]

    torch.save({"weight": Code()}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="more than tensors"):
        load(folder)
    assert not marker.exists()


def test_a_pickle_of_tensors_equals_safetensors(fastvlm_oracle: Path, tmp_path: Path) -> None:
    folder = apple_checkpoint(fastvlm_oracle, tmp_path)
    expected = load(folder).decoder.state_dict()
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    for name, value in load(folder).decoder.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_an_unknown_model_type_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CheckpointError, match="unknown model_type 'bert'"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("architecture", "task"),
    [("Qwen2ForCausalLM", "a text-generation model"), ("BertForMaskedLM", "a fill-mask model"), ("Nothing", None)],
)
def test_an_unknown_model_is_told_what_it_is(architecture: str, task: str | None, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "x", "architectures": [architecture]}))
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path)
    assert (task in caught.value.what) if task else ("model, not" not in caught.value.what)
