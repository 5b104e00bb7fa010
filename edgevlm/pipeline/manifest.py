"""The manifest of a bundle: what is in its folder, what made it, and of what.

In: a recipe, the model after its passes, and the folder with its artefacts. Out: a `Manifest`, its parity still empty.
"""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from edgevlm._version import __version__
from edgevlm.bundle import SCHEMA_VERSION, ArtifactEntry, Manifest, ParityResult, sha256_file
from edgevlm.exporters.base import Artifact
from edgevlm.models import VlmModel
from edgevlm.recipe import Recipe

_TOOLS = ("torch", "onnx", "onnxruntime", "gguf", "llama-cpp-python", "tokenizers", "numpy")


def make_manifest(
    recipe: Recipe, model: VlmModel, sources: dict[str, str], folder: Path, artifacts: list[Artifact]
) -> Manifest:
    """The manifest over every file in `folder`; files that no exporter named are configuration."""
    named = {artifact.path: artifact for artifact in artifacts}
    entries = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        artifact = named.get(name, Artifact(name, "config", path.suffix.lstrip(".")))
        entries.append(
            ArtifactEntry(
                path=name,
                role=artifact.role,
                format=artifact.format,
                precision=artifact.precision,
                bytes=path.stat().st_size,
                sha256=sha256_file(path),
                bits_per_weight=round(artifact.bits_per_weight, 4),
                parameters=artifact.parameters,
            )
        )
    return Manifest(
        schema_version=SCHEMA_VERSION,
        name=model.spec.name,
        format=recipe.format,
        spec=model.spec.to_dict(),
        recipe=recipe.model_dump(mode="json"),
        artifacts=entries,
        parity=list[ParityResult](),
        tools=tool_versions(),
        source_sha256=sources,
        licence=model.spec.licence,
    )


def source_name(path: Path, source: Path) -> str:
    """A weight file's path in the checkpoint's folder; of one that lies elsewhere the last folder and the name."""
    return (path.relative_to(source) if path.is_relative_to(source) else Path(*path.parts[-2:])).as_posix()


def tool_versions() -> dict[str, str]:
    """Versions of what made the bundle."""
    tools = {"edgevlm": __version__, "python": platform.python_version()}
    for name in _TOOLS:
        try:
            tools[name] = version(name)
        except PackageNotFoundError:
            continue
    return tools
