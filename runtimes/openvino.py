"""OpenVINO vision engine for x86 and ARM CPUs.

In: the same `vision_encoder.onnx` that ONNX Runtime reads. Out: image embeddings. Where the CPU multiplies bfloat16
natively (AMX, AVX512-BF16, ARM BF16) the graph runs in it, several times as fast as float32; elsewhere in float32.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edgevlm.patches import graph_inputs
from edgevlm.runtimes.base import Encoded, EngineOptions, EngineStats, Float32
from edgevlm.runtimes.checks import check_declared, checked_features, checked_tiles, engine_errors, thread_count
from edgevlm.spec import ModelSpec


class OpenVinoVision:
    """Pixels to image embeddings through a graph compiled for one image at a time."""

    def __init__(self, path: Path, spec: ModelSpec, options: EngineOptions) -> None:
        """Read and compile the graph.

        Raises:
            BundleError: the graph makes another number of image tokens than the spec says.
            EngineError: OpenVINO refuses the graph.
        """
        import openvino
        from openvino import properties

        self._threads = thread_count(options.threads)
        self._tokens, self._hidden = spec.vision.image_tokens, spec.decoder.hidden_size
        self._tile_tokens, self._patches = spec.vision.grid_side**2, spec.preprocess.patches
        shared = spec.vision.reducer is not None and spec.vision.reducer.shared
        with engine_errors("OpenVINO cannot compile this graph", str(path)):
            core = openvino.Core()
            native = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
            # A graph that shares out tokens counts them in float32; bfloat16 has no 257.
            self.precision = "bf16" if native and not shared else "f32"
            settings: dict[str, Any] = {
                properties.hint.performance_mode: properties.hint.PerformanceMode.LATENCY,
                properties.hint.inference_precision: getattr(openvino.Type, self.precision),
                properties.inference_num_threads: self._threads,
                # The decoder's threads use the same cores a moment later.
                properties.hint.enable_cpu_pinning: False,
            }
            # Denormal numbers slow some CPUs tenfold.
            denormals = properties.intel_cpu.denormals_optimization
            if denormals() in core.get_property("CPU", "SUPPORTED_PROPERTIES"):
                settings[denormals] = True
            model = core.read_model(path)
            if self._patches is None:
                if not shared:
                    model.reshape({0: [1, *spec.vision.input_shape]})
                declared = [size.get_length() if size.is_static else None for size in model.output(0).partial_shape]
                check_declared(declared, self._tokens, self._hidden, str(path))
            self._input_dtype = model.input(0).element_type.to_dtype()
            self._compiled: Any = core.compile_model(model, "CPU", settings)
            self._request: Any = self._compiled.create_infer_request()

    def encode(self, pixels: Float32) -> Float32:
        """Pixels `[B, 3, H, W]` to embeddings `[B, N, hidden]`, one image after the other.

        Raises:
            EngineError: the runtime failed or returned another shape.
        """
        if self._patches is not None:
            patches, grid = graph_inputs(pixels, self._patches)
            with engine_errors("OpenVINO failed"):
                results = self._request.infer([patches.astype(self._input_dtype, copy=False), grid])
                rows = np.array(results[0])
            return checked_features(rows, 1, pixels.shape[0] * pixels.shape[1], self._hidden)
        features = []
        with engine_errors("OpenVINO failed"):
            for image in pixels.astype(self._input_dtype, copy=False):
                results = self._request.infer([image[None]], share_inputs=True, share_outputs=True)
                features.append(checked_features(np.array(results[0]), 1, self._tokens, self._hidden))
        return np.concatenate(features)

    def encode_tiles(self, pixels: Float32, boxes: Float32) -> Encoded:
        """Pixels of all tiles of an image `[T, 3, R, R]` and their places `[T, 4]` to its tokens.

        Raises:
            EngineError: the runtime failed, or returned another shape or places that cannot be.
        """
        with engine_errors("OpenVINO failed"):
            results = self._request.infer([pixels.astype(self._input_dtype, copy=False), boxes])
            rows, places = np.array(results["image_features"]), np.array(results["token_places"])
        return checked_tiles(rows, places, len(pixels), self._tokens, self._hidden, self._tile_tokens)

    def encode_guided(self, pixels: Float32, text: Float32) -> Float32:
        """Pixels `[B, 3, H, W]` and a question `[1, P]` to embeddings `[B, N, hidden]`, one image after the other.

        Raises:
            EngineError: the runtime failed or returned another shape.
        """
        features = []
        with engine_errors("OpenVINO failed"):
            for image in pixels.astype(self._input_dtype, copy=False):
                results = self._request.infer([image[None], text])
                features.append(checked_features(np.array(results[0]), 1, self._tokens, self._hidden))
        return np.concatenate(features)

    def stats(self) -> EngineStats:
        """Name, version and settings."""
        import openvino

        version = openvino.get_version().split("-")[0]
        return EngineStats(f"openvino {version}", {"precision": self.precision, "threads": str(self._threads)})

    def close(self) -> None:
        """Free the compiled graph."""
        self._request = self._compiled = None
