"""Real engines, built without a GPU by tensorrt-rtx: weights stay as small as they were exported."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import tiny_with_tokenizer
from trt_bundles import trt_bundle

from edgevlm.bundle import open_bundle
from edgevlm.exporters.lint import lint
from edgevlm.exporters.tensorrt.versions import TensorRtOptions, tensorrt_options
from edgevlm.models import load
from edgevlm.models.decoder import Decoder
from edgevlm.models.source import resolve
from edgevlm.runtimes.build_plan import PLAN, read_build_plan
from edgevlm.runtimes.trt.build import build_engines
from edgevlm.runtimes.trt.cards import bundle_cards
from edgevlm.spec import DecoderSpec
from edgevlm.zoo.synth import SPECS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("tensorrt_rtx") is None,
        reason="tensorrt-rtx is not installed: pip install 'edgevlm[rtx]'",
    ),
]
#: What an engine holds beside weights: kernels and tables, whatever the model's size.
_KERNELS = 10 << 20


def _sizes(folder: Path, target: str) -> dict[str, tuple[int, int]]:
    """Bytes of each engine, and of the weights that it was built from."""
    engines = build_engines(folder, target, progress=lambda *_: None)
    plan = read_build_plan(folder / PLAN)
    open_bundle(folder, verify=True)
    return {
        engine.role: (engine.bytes, part.weight_bytes) for engine, part in zip(engines, plan.components, strict=True)
    }


def test_the_bundled_model_is_built_whole(tmp_path: Path) -> None:
    model = load(resolve("zoo:nano-fastvlm"))
    folder = trt_bundle(tmp_path / "bundle", model, tensorrt_options("10.16", None, model.spec), "int4", "fp16")
    sizes = _sizes(folder, "rtx-4060")
    assert set(sizes) == {"vision", "embed", "decoder"}
    assert all(weights < engine < weights + _KERNELS for engine, weights in sizes.values()), sizes
    assert lint(folder, "rtx-4060")[1] == [], "what the parser takes, the lint takes"
    cards = bundle_cards(open_bundle(folder)).values()
    assert {(card.library, card.compute_capability) for card in cards} == {("tensorrt_rtx", "8.9")}


def test_int4_weights_of_a_wide_decoder_stay_int4(tmp_path: Path) -> None:
    """Four layers of FastVLM-0.5B in full width (a quarter of its vocabulary): in half precision, 172 MB of weights."""
    spec = replace(SPECS["fastvlm-0.5b"].decoder, num_hidden_layers=4, vocab_size=32768)
    tiny = tiny_with_tokenizer(tmp_path)
    model = replace(tiny, spec=replace(tiny.spec, decoder=spec), decoder=_random(spec))
    folder = trt_bundle(tmp_path / "bundle", model, TensorRtOptions((10, 16), 1024), "int4", "fp32")
    assert lint(folder, "jetson-orin-nano")[1] == [], "its INT4 is what a Jetson's TensorRT reads"
    sizes = _sizes(folder, "rtx-3060")
    for role in ("embed", "decoder"):
        engine, weights = sizes[role]
        assert weights < engine < weights + _KERNELS, sizes
    assert sizes["decoder"][1] > 4 * _KERNELS, "the weights outweigh the kernels, or this proves nothing"


def _random(spec: DecoderSpec) -> Decoder:
    """A decoder of random weights in bfloat16, which is half the memory."""
    torch.manual_seed(0)
    with torch.device("meta"):
        decoder = Decoder(spec)
    decoder = decoder.to(torch.bfloat16).to_empty(device="cpu")
    with torch.no_grad():
        for parameter in decoder.parameters():
            if parameter.dim() > 1:
                parameter.uniform_(-0.05, 0.05)
            else:
                parameter.fill_(1.0)
    return decoder
