"""All reducers in one graph: ONNX Runtime keeps the tokens that torch keeps, on 64 images, fp32 and stored in fp16."""

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from reducer_models import CLIP, FASTVITHD, SIGLIP, reducer, scene_pixels, vision_model, vision_spec
from torch import Tensor, nn

from edgevlm.exporters.onnx.external import ExternalData
from edgevlm.exporters.onnx.vision import trace_vision, write_vision
from edgevlm.models.taps import Taps, TokenReducer
from edgevlm.models.vlm import VisionModel
from edgevlm.pruning.tokens import REDUCERS
from edgevlm.pruning.tokens.reducer import Reducer, Selector
from edgevlm.recipe import Precision
from edgevlm.spec import VisionSpec

IMAGES, KEEP = 64, 9
#: Those that need nothing but the image; `test_sessions.py` holds all of the list to the same.
EVERY = [
    name for name, cls in REDUCERS.items() if issubclass(cls, Reducer) and not cls.needs_text and name != "resolution"
]
#: Those that read another encoder otherwise than CLIP.
WITHOUT_CLASS = ["attention", "visionzip"]


class Together(TokenReducer):
    """What each reducer makes of the same tokens, one after the other, so that one trace serves all."""

    before_projector = True

    def __init__(self, spec: VisionSpec, names: Sequence[str]) -> None:
        super().__init__()
        self.reducers = nn.ModuleDict({name.replace("-", "_"): reducer(name, spec, KEEP) for name in names})
        self.layers = tuple({layer for each in self.reducers.values() for layer in each.layers})

    def forward(self, x: Tensor, taps: Taps) -> Tensor:
        return torch.cat([each(x, taps) for each in self.reducers.values()], dim=1)


def as_stored(model: VisionModel, graph: Path) -> VisionModel:
    """The model with the weights that the graph holds: those that it widens from half precision are rounded."""
    proto = onnx.load(str(graph), load_external_data=False).graph
    half = {tensor.name for tensor in proto.initializer if tensor.data_type == onnx.TensorProto.FLOAT16}
    rounded = copy.deepcopy(model)
    for name, weight in rounded.named_parameters():
        if f"{name}.half" in half:
            weight.copy_(weight.half())
    return rounded


def places(tokens: NDArray[np.float32], every: NDArray[np.float32]) -> NDArray[np.intp]:
    """Which of all tokens `[B, N, H]` those `[B, K, H]` are that were kept: `[B, K]`."""
    distances = np.linalg.norm(tokens[:, :, None] - every[:, None], axis=-1)
    nearest, second = np.sort(distances, axis=-1)[..., :2].transpose(2, 0, 1)
    assert (nearest < 1e-2).all(), "a kept token is none of those that there were"
    assert (nearest < second).all()
    found: NDArray[np.intp] = distances.argmin(axis=-1)
    return found


@pytest.mark.parametrize(
    ("spec", "names", "precision"),
    [
        (vision_spec(CLIP), ["fastervlm", "divprune", "tome", "cluster"], "fp32"),
        (vision_spec(CLIP), EVERY, "fp16"),
        (vision_spec(CLIP, shuffle=2), ["fastervlm", "visionzip"], "fp16"),
        (vision_spec(SIGLIP), WITHOUT_CLASS, "fp16"),
        (vision_spec(FASTVITHD, side=4), [*WITHOUT_CLASS, "fopru", "divprune"], "fp16"),
    ],
    ids=["clip-fp32", "clip-fp16", "clip-shuffled", "siglip", "fastvithd"],
)
def test_the_graph_keeps_what_torch_keeps(
    spec: VisionSpec, names: list[str], precision: Precision, tmp_path: Path
) -> None:
    plain = vision_model(spec)
    model = VisionModel(plain.encoder, plain.projector, plain.shuffle, Together(spec, names)).eval()
    images = scene_pixels(spec.image_size, IMAGES)
    path = tmp_path / "vision.onnx"
    with ExternalData(tmp_path / "vision.data") as data:
        write_vision(trace_vision(model, spec.image_size), precision, path, data)
    with torch.inference_mode():
        wanted = as_stored(model, path)(images).numpy()
        every = as_stored(plain, path)(images).numpy()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options)
    found = session.run(None, {"pixel_values": images.numpy()})[0]
    assert found.shape == wanted.shape == (IMAGES, KEEP * len(names), 16)
    for index, name in enumerate(names):
        part = slice(KEEP * index, KEEP * (index + 1))
        same = [np.allclose(a[part], b[part], rtol=1e-3, atol=1e-3) for a, b in zip(found, wanted, strict=True)]
        assert all(same), f"{name}: {IMAGES - sum(same)} images differ"
        if issubclass(REDUCERS[name], Selector):
            np.testing.assert_array_equal(places(found[:, part], every), places(wanted[:, part], every), name)
    spread = wanted[:, :KEEP].std(axis=1).mean()
    assert spread > 0.05, "tokens so alike that another choice would not show"
