"""A tiny seeded VLM whole: torch modules, and a bundle of ONNX graphs that compute the same.

The vision tower is one strided convolution, written by hand, so that no test here waits for a torch export.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import torch
from decoders import QWEN2
from onnx import TensorProto, helper, numpy_helper
from onnx_models import make_decoder, write_decoder
from torch import Tensor, nn

from edgevlm.bundle import SCHEMA_VERSION, ArtifactEntry, Bundle, Manifest, open_bundle, sha256_file, write_manifest
from edgevlm.models.decoder import Attention
from edgevlm.models.fastvlm import CHAT_TEMPLATE
from edgevlm.models.projector import MlpProjector
from edgevlm.models.vlm import VisionModel, VlmModel
from edgevlm.recipe import Precision
from edgevlm.spec import DecoderSpec, FastViTHDSpec, MlpProjectorSpec, ModelSpec, PreprocessSpec, PromptSpec, VisionSpec
from edgevlm.zoo.tokenizer import build_tokenizer

SIZE, STRIDE, FEATURES = 64, 16, 8
TOKENS = (SIZE // STRIDE) ** 2
#: Untied, since a tied head on random weights repeats one token for ever.
DECODER = replace(QWEN2, vocab_size=1024, max_position_embeddings=256, tied_embeddings=False)


class PatchEncoder(nn.Module):
    """Pixels `[B, 3, H, W]` to `[B, N, FEATURES]` through one convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, FEATURES, STRIDE, STRIDE)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.conv(pixels).flatten(2).transpose(1, 2)  # type: ignore[no-any-return]


def tiny_model(decoder: DecoderSpec = DECODER) -> VlmModel:
    """16 image tokens, 2 decoder layers, random weights."""
    spec = ModelSpec(
        family="fastvlm",
        name="tiny",
        vision=VisionSpec(FastViTHDSpec(), MlpProjectorSpec(decoder.hidden_size), SIZE, TOKENS),
        decoder=decoder,
        preprocess=PreprocessSpec(SIZE),
        prompt=PromptSpec(CHAT_TEMPLATE, stop_token_ids=(1020,), default_system="You are a helpful assistant."),
        model_type="llava_qwen2",
        model_class="LlavaQwen2ForCausalLM",
    )
    torch.manual_seed(0)
    projector = MlpProjector(MlpProjectorSpec(decoder.hidden_size), FEATURES, decoder.hidden_size)
    vision = VisionModel(PatchEncoder(), projector).eval().requires_grad_(False)
    module = make_decoder(decoder)
    # Attention sharp and strong enough for image and question to decide the answer.
    for layer in module.layers:
        attention = layer.self_attn
        assert isinstance(attention, Attention)
        attention.q_proj.weight.mul_(4)
        attention.v_proj.weight.mul_(4)
    return VlmModel(spec, vision, module, {}, ())


def tiny_with_tokenizer(folder: Path) -> VlmModel:
    """The same with its tokenizer, which is written to `folder`."""
    file = folder / "tokenizer.json"
    build_tokenizer().save(str(file))
    return replace(tiny_model(), tokenizer_files={file.name: file})


def tiny_bundle(model: VlmModel, out: Path, precision: Precision = "fp32") -> Bundle:
    """Write the graphs, the tokenizer and the manifest."""
    out.mkdir()
    write_vision(model, out / "vision.onnx")
    write_decoder(model.decoder, out, precision)
    build_tokenizer().save(str(out / "tokenizer.json"))
    roles = {"vision": "vision", "embed": "embed", "decoder": "decoder", "tokenizer": "tokenizer"}
    entries = [
        ArtifactEntry(
            path=path.name,
            role=roles[path.stem],
            format=path.suffix[1:],
            bytes=path.stat().st_size,
            sha256=sha256_file(path),
        )
        for path in sorted(out.iterdir())
    ]
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        name="tiny",
        format="onnx",
        spec=model.spec.to_dict(),
        recipe={"precision": precision},
        artifacts=entries,
        tools={"edgevlm": "test"},
    )
    write_manifest(out, manifest)
    return open_bundle(out)


def write_vision(model: VlmModel, path: Path, output: str = "image_features") -> None:
    """The vision module as an ONNX graph: Conv, Reshape, Transpose, MatMul, Gelu, MatMul."""
    conv = model.vision.encoder.conv
    projector = model.vision.projector
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(projector, MlpProjector)
    assert conv.bias is not None
    first, second = projector.linear_1, projector.linear_2
    weights = {
        "conv.w": conv.weight,
        "conv.b": conv.bias,
        "first.w": first.weight.T,
        "first.b": first.bias,
        "second.w": second.weight.T,
        "second.b": second.bias,
    }
    initializers = [numpy_helper.from_array(value.numpy().copy(), name) for name, value in weights.items()]
    initializers.append(numpy_helper.from_array(np.array([0, FEATURES, -1], np.int64), "shape"))
    nodes = [
        helper.make_node("Conv", ["pixel_values", "conv.w", "conv.b"], ["map"], strides=[STRIDE, STRIDE]),
        helper.make_node("Reshape", ["map", "shape"], ["rows"]),
        helper.make_node("Transpose", ["rows"], ["features"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["features", "first.w"], ["a"]),
        helper.make_node("Add", ["a", "first.b"], ["b"]),
        helper.make_node("Gelu", ["b"], ["c"]),
        helper.make_node("MatMul", ["c", "second.w"], ["d"]),
        helper.make_node("Add", ["d", "second.b"], [output]),
    ]
    pixels = helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["batch_size", 3, SIZE, SIZE])
    image = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "vision", [pixels], [image], initializers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), str(path))
