"""What choosing visual tokens by the question costs at the size of LLaVA-1.5: 64 of 576 tokens, on one core.

Three parts, all of random weights: the text tower of CLIP-L/14 on a question of 15 tokens, the way of the patches into
the space of texts with the choice behind it, and, to compare, the vision side in the same run.
"""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from edgevlm.exporters.onnx.external import ExternalData
from edgevlm.exporters.onnx.text import export_text
from edgevlm.exporters.onnx.vision import OPSET, export_vision
from edgevlm.exporters.onnx.vision_ops import TRANSLATIONS
from edgevlm.models.projector import build_projector
from edgevlm.models.taps import QueryKey, Taps
from edgevlm.models.text_tower import PatchHead, TextTower
from edgevlm.models.vlm import VisionModel, build_encoder
from edgevlm.pruning.tokens import REDUCERS
from edgevlm.pruning.tokens.reducer import Reducer
from edgevlm.spec import MlpProjectorSpec, TextTowerSpec, VisionSpec, VitSpec

KEEP, TOKENS, QUESTION, SHARED = 64, 576, 15, 768
MOST = 0.05
CLIP_L = VitSpec(1024, 4096, 23, 16, 14, 24, 1e-5, activation="quick_gelu", class_token=True, pre_norm=True)
VISION = VisionSpec(CLIP_L, MlpProjectorSpec(4096), 336, TOKENS)
TEXT = TextTowerSpec(49408, 768, 3072, 12, 12, 77, SHARED, end_token_id=49407, begin_token_id=49406)
ROUNDS, WHOLE_ROUNDS = 20, 3


class Choice(nn.Module):
    """A reducer, with the patches' way to the question before it."""

    def __init__(self, reducer: Reducer[Any]) -> None:
        super().__init__()
        self.reducer = reducer
        self.patches = PatchHead(CLIP_L.hidden_size, SHARED, CLIP_L.norm_eps)

    def forward(self, x: Tensor, text: Tensor, query: Tensor, key: Tensor) -> Tensor:
        """Features `[1, N, C]`, a question `[1, P]`, and queries and keys of the last layer."""
        taps = Taps(self.reducer.layers)
        taps.found = {layer: QueryKey(query, key) for layer in self.reducer.layers}
        taps.text, taps.patches = text, self.patches(x)
        return self.reducer(x, taps)  # type: ignore[no-any-return]


def _session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _fastest(session: ort.InferenceSession, inputs: dict[str, Any], rounds: int) -> float:
    """Milliseconds of the fastest of some runs."""
    found = []
    for _ in range(rounds):
        start = time.perf_counter()
        session.run(None, inputs)
        found.append(1e3 * (time.perf_counter() - start))
    return min(found)


def _choice(name: str, path: Path) -> tuple[ort.InferenceSession, dict[str, Any]]:
    method = REDUCERS[name]
    assert issubclass(method, Reducer)
    seen = torch.randn(2, 1, CLIP_L.num_attention_heads, TOKENS + 1, 64)
    inputs = (torch.randn(1, TOKENS, CLIP_L.hidden_size), torch.randn(1, SHARED), *seen)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            Choice(method(VISION, KEEP, method.Options())).eval(),
            inputs,
            dynamo=True,
            opset_version=OPSET,
            custom_translation_table=TRANSLATIONS,
            verbose=False,
        )
    assert program is not None
    program.save(path)
    session, names = _session(path), [value.name for value in program.model.graph.inputs]
    given = dict(zip(names, (value.numpy() for value in inputs), strict=True))
    return session, {value.name: given[value.name] for value in session.get_inputs()}


@pytest.fixture(scope="module")
def whole_ms(tmp_path_factory: pytest.TempPathFactory) -> float:
    """Milliseconds of the vision side."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("vision")
    model = VisionModel(build_encoder(CLIP_L), build_projector(VISION, 4096)).eval()
    with ExternalData(folder / "vision.data") as data:
        export_vision(model, VISION.image_size, "fp32", folder / "vision.onnx", data)
    pixels = torch.rand(1, *VISION.input_shape).numpy()
    return _fastest(_session(folder / "vision.onnx"), {"pixel_values": pixels}, WHOLE_ROUNDS)


@pytest.fixture(scope="module")
def text_ms(tmp_path_factory: pytest.TempPathFactory) -> float:
    """Milliseconds of the text tower."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("text")
    with ExternalData(folder / "text.data") as data:
        export_text(TextTower(TEXT).eval(), "fp32", folder / "text.onnx", data)
    ids = torch.randint(0, TEXT.vocab_size, (1, QUESTION)).numpy()
    return _fastest(_session(folder / "text.onnx"), {"input_ids": ids}, ROUNDS)


@pytest.mark.parametrize("name", ["cdpruner", "recoverable"])
def test_cost_of_choosing_by_the_question(
    name: str, benchmark: Any, whole_ms: float, text_ms: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    session, inputs = _choice(name, tmp_path / "choice.onnx")
    benchmark.pedantic(lambda: session.run(None, inputs), rounds=ROUNDS, warmup_rounds=2)
    choice = 1e3 * benchmark.stats.stats.min
    share = (choice + text_ms) / whole_ms
    benchmark.extra_info.update(text_ms=round(text_ms, 1), vision_ms=round(whole_ms, 1), share=round(share, 5))
    met = "met" if share <= MOST else "NOT MET"
    with capsys.disabled():
        print(f"\n  {name}: {choice:.1f} ms and {text_ms:.1f} ms of text, {share:.2%} of {whole_ms:.0f} ms ({met})")
