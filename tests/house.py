"""What the guard tests know of the house: every module, its imports, its floor and its half."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
LINKED = ("exporters", "quant", "runtimes", "targets", "bench")

#: The part of `edgevlm.zoo` that makes checkpoints.
ZOO_HOST_HALF = (
    *("batches", "card", "clip", "evaluate", "families", "fused", "layout", "llava_layout"),
    *("llava_mini_layout", "losses", "nano", "publish", "start_values", "starts", "tinygptv_layout"),
    *("quantnoise", "random_weights", "synth", "synth_decoders", "synth_llava", "synth_llava_files"),
    *("synth_llava_mini", "synth_llava_sizes", "synth_llava_tensors", "synth_qwen2_vl", "synth_tinygptv"),
    *("tokenizer", "train", "trainer"),
)

#: From the ground up; a module imports only from lower floors and from its own entry. The longest entry decides.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("_version", "errors", "heap", "longrun", "tables", "progress", "validation"),
    ("atomic", "chat_template", "child", "imageio", "sampling", "spec", "tokenizer"),
    ("patches", "tiling", "quant.cache_scales", "quant.tensor", "runtimes.device"),
    ("answer", "video", "zoo", "zoo.drawing", "zoo.digits", "recipe", "bundle", "preprocess", "prompt", "targets"),
    ("feature_rows", "stream", "runtimes.base", "runtimes.positions"),
    ("question", "tile_tokens"),
    ("assembly", "models", "zoo.scenes"),
    ("reference", "zoo.digit_pages"),
    ("calibration",),
    ("passes",),
    ("quant", "pruning", "runtimes"),
    ("context", "exporters", "generation"),
    ("fusing", "seeing"),
    ("session", "doctor"),
    ("",),
    ("pipeline", "bench", "integrations", *(f"zoo.{name}" for name in ZOO_HOST_HALF)),
    ("bench.study", "pipeline.estimate"),
    ("bench.suite", "cli"),
    ("__main__",),
)

#: Modules that may import torch and friends; everything else runs on the device.
HOST_HALF = (
    *("models", "reference", "calibration", "passes", "pruning", "quant", "exporters", "pipeline"),
    *("runtimes.torch", "bench.suite", "bench.study", "cli.forecasts"),
    *(f"zoo.{name}" for name in ZOO_HOST_HALF),
)
HOST_LIBRARIES = (
    *("torch", "transformers", "onnx", "onnxscript", "onnx_ir", "optimum", "safetensors", "gguf"),
    *("sklearn", "scipy", "huggingface_hub", "requests"),
)


def modules() -> dict[str, Path]:
    """Every module of the product, `edgevlm.x.y` -> its file."""
    found = {}
    for folder in (ROOT / "edgevlm", *(ROOT / "edgevlm" / name for name in LINKED)):
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(part for part in parts if part != "__init__")] = path
    return found


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Absolute names that a file imports, wherever in it, with the line; `from a import b` yields `a.b`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def below(name: str, prefix: str) -> bool:
    """Whether module `name` is `edgevlm.prefix` or lies in it."""
    full = f"edgevlm.{prefix}".rstrip(".")
    return name == full or (prefix != "" and name.startswith(f"{full}."))
