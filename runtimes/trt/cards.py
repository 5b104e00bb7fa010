"""Engines inside a bundle, and the card beside each that says what it was built for.

An engine runs with the TensorRT version, on the compute capability, and on a Jetson with the release of L4T that it was
built with, and stands for the graph it was built from; anything else is refused here, before native code reads it.
Engines are in `tensorrt/<library>-<version>-sm<capability>[-l4t<release>]/<role>.engine`, each with `<role>.json`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgevlm.bundle import (
    ENGINE_FOLDER,
    ArtifactEntry,
    Bundle,
    open_bundle,
    read_manifest,
    sha256_file,
    write_manifest,
)
from edgevlm.errors import BundleError, EngineError
from edgevlm.runtimes.build_plan import ComponentPlan, Role
from edgevlm.runtimes.trt.library import Library
from edgevlm.validation import first_problem

CARD_ROLE = "engine"
CARD_SCHEMA_VERSION = 1
_MAX_CARD_BYTES = 1 << 16
_HINT = "build it again: edgevlm build BUNDLE --target NAME"


@dataclass(frozen=True)
class Place:
    """Where an engine runs: a library, its version, a compute capability, and the L4T release of a Jetson."""

    library: Library
    version: str
    compute_capability: tuple[int, int]
    l4t: str = ""

    @property
    def capability(self) -> str:
        """`8.6`."""
        return "{}.{}".format(*self.compute_capability)

    @property
    def folder(self) -> str:
        """The folder of its engines, relative to the bundle."""
        capability = "{}{}".format(*self.compute_capability)
        system = f"-l4t{self.l4t}" if self.l4t else ""
        return f"{ENGINE_FOLDER}/{self.library.replace('_', '-')}-{self.version}-sm{capability}{system}"

    def __str__(self) -> str:
        system = f" on L4T {self.l4t}" if self.l4t else ""
        return f"{self.library} {self.version}, SM {self.capability}{system}"


class EngineCard(BaseModel):
    """What one engine was built from and for.

    Attributes:
        graph: path of its ONNX file in the bundle.
        sources: that file and those of its tensors, with their SHA-256 when it was built.
        bytes: of the engine file.
        sha256: likewise.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int
    library: Library
    version: str
    compute_capability: str = Field(pattern=r"^\d{1,2}\.\d$")
    l4t: str = ""
    role: Role
    graph: str
    sources: dict[str, str]
    bytes: int = Field(gt=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")

    @property
    def place(self) -> Place:
        """Where the engine runs."""
        major, minor = self.compute_capability.split(".")
        return Place(self.library, self.version, (int(major), int(minor)), self.l4t)


def card_for(bundle: Bundle, component: ComponentPlan, place: Place, engine: Path) -> EngineCard:
    """The card of an engine that was just built."""
    return EngineCard(
        schema_version=CARD_SCHEMA_VERSION,
        library=place.library,
        version=place.version,
        compute_capability=place.capability,
        l4t=place.l4t,
        role=component.role,
        graph=component.graph,
        sources=source_hashes(bundle, component),
        bytes=engine.stat().st_size,
        sha256=sha256_file(engine),
    )


def source_hashes(bundle: Bundle, component: ComponentPlan) -> dict[str, str]:
    """SHA-256 of what an engine is built from, as the manifest has them.

    Raises:
        BundleError: the plan names a file that the manifest does not have.
    """
    known = {entry.path: entry.sha256 for entry in bundle.manifest.artifacts}
    missing = [path for path in (component.graph, *component.data) if path not in known]
    if missing:
        what = f"the build plan names {missing[0]!r:.80}, which the bundle lacks"
        raise BundleError(what, str(bundle.path), "export it again")
    return {path: known[path] for path in (component.graph, *component.data)}


def read_card(path: Path) -> EngineCard:
    """Read a card.

    Raises:
        BundleError: it is no card, or of another schema version.
    """
    try:
        if path.stat().st_size > _MAX_CARD_BYTES:
            raise BundleError("the card of an engine is too large", str(path), _HINT)
        data = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(data, dict) and data.get("schema_version") != CARD_SCHEMA_VERSION:
            version = data.get("schema_version")
            raise BundleError(f"unknown schema version {version!r:.20} of an engine's card", str(path), _HINT)
        return EngineCard.model_validate(data)
    except ValidationError as error:
        field, problem = first_problem(error)
        raise BundleError(f"the card of an engine: {field}: {problem}", str(path), _HINT) from error
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"the card of an engine cannot be read: {error}", str(path), _HINT) from error


def is_current(bundle: Bundle, component: ComponentPlan, place: Place) -> bool:
    """Whether the engine for a place is there whole, and built from the graph as it is."""
    folder = bundle.path / place.folder
    engine = folder / f"{component.role}.engine"
    try:
        card = read_card(folder / f"{component.role}.json")
        size = engine.stat().st_size
    except (BundleError, OSError):
        return False
    same = card.place == place and card.sources == source_hashes(bundle, component) and card.bytes == size
    return same and sha256_file(engine) == card.sha256


def find_engine(bundle: Bundle, component: ComponentPlan, places: list[Place]) -> tuple[Path, EngineCard]:
    """The engine of a component that runs at one of `places`, the first that has one.

    Raises:
        EngineError: none was built, or only for another library, version, GPU or system, or from other graphs.
        BundleError: it was cut short.
    """
    cards = {path: card for path, card in bundle_cards(bundle).items() if card.role == component.role}
    here = "; ".join(map(str, places)) or "no TensorRT"
    if not cards:
        raise EngineError(f"the bundle holds no TensorRT engine of its {component.role}", str(bundle.path), _HINT)
    for place in places:
        for path, card in cards.items():
            if card.place != place:
                continue
            engine = path.with_suffix(".engine")
            if card.sources != source_hashes(bundle, component):
                raise EngineError("the engine was built from other graphs than the bundle has", str(engine), _HINT)
            _check_whole(engine, card)
            return engine, card
    built = "; ".join(sorted({str(card.place) for card in cards.values()}))
    raise EngineError(f"the {component.role} engine was built for {built}; here is {here}", str(bundle.path), _HINT)


def _check_whole(engine: Path, card: EngineCard) -> None:
    """Raise unless the engine is as long as what was built: native code does not survive one that was cut short."""
    try:
        size = engine.stat().st_size
    except OSError as error:
        raise BundleError("an engine is missing", str(engine), _HINT) from error
    if size != card.bytes:
        raise BundleError(f"an engine has {size} bytes instead of {card.bytes}: it was cut short", str(engine), _HINT)


def bundle_cards(bundle: Bundle) -> dict[Path, EngineCard]:
    """The cards that the manifest names."""
    paths = [bundle.path / entry.path for entry in bundle.manifest.artifacts if entry.role == CARD_ROLE]
    return {path: read_card(path) for path in paths}


def list_engines(folder: Path, place: Place, components: Sequence[ComponentPlan]) -> None:
    """Let the manifest name the engines of these components, and no others, at a place; it is replaced in one step.

    Raises:
        BundleError: the bundle is not whole.
    """
    manifest = open_bundle(folder).manifest
    kept = [entry for entry in manifest.artifacts if not entry.path.startswith(f"{place.folder}/")]
    added = []
    for component in components:
        stem = f"{place.folder}/{component.role}"
        card, path = read_card(folder / f"{stem}.json"), folder / f"{stem}.json"
        engine = {"path": f"{stem}.engine", "bytes": card.bytes, "sha256": card.sha256}
        added.append(ArtifactEntry(**engine, role=component.role, format=place.library, precision=component.precision))
        beside = {"path": f"{stem}.json", "bytes": path.stat().st_size, "sha256": sha256_file(path)}
        added.append(ArtifactEntry(**beside, role=CARD_ROLE, format="json"))
    write_manifest(folder, manifest.model_copy(update={"artifacts": [*kept, *added]}))


def forget_broken(folder: Path) -> None:
    """Take engines that are missing or of another size out of the manifest, so that they can be built again.

    Raises:
        BundleError: the manifest cannot be read.
    """
    manifest = read_manifest(folder)
    broken = {
        entry.path.rpartition(".")[0]
        for entry in manifest.artifacts
        if entry.path.startswith(f"{ENGINE_FOLDER}/") and not _has_size(folder / entry.path, entry.bytes)
    }
    if broken:
        kept = [entry for entry in manifest.artifacts if entry.path.rpartition(".")[0] not in broken]
        write_manifest(folder, manifest.model_copy(update={"artifacts": kept}))


def _has_size(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except OSError:
        return False
