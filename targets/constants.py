"""What share of its peaks each device reaches, from `constants.yaml`, which tools/fit_targets.py writes.

In: a profile and a runtime. Out: `Constants`: those fitted to runs on this very device, or else those of its family.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from edgevlm.targets.profile import Format, TargetProfile
from edgevlm.targets.roofline import Constants

PATH = Path(__file__).parent / "constants.yaml"

#: Which runtime runs the decoder of a bundle.
RUNTIME_OF: dict[Format, str] = {"tensorrt": "tensorrt", "gguf": "llama_cpp", "onnx": "onnxruntime"}


class Entry(BaseModel):
    """Constants of a target, or of a family of targets, with one runtime."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    of: str
    runtime: str
    decode_efficiency: float = Field(gt=0, le=1.5)
    layer_us_ghz: float = Field(ge=0)
    prefill_efficiency: float = Field(gt=0, le=1.5)
    vision_efficiency: float = Field(gt=0, le=1.5)
    overhead_gib: float = Field(ge=0)
    basis: str


def family(profile: TargetProfile) -> str:
    """Devices that share what runs cannot tell of each of them: `orin`, `thor`, `gpu` or `cpu`."""
    if profile.kind == "jetson":
        return "orin" if profile.compute_capability == (8, 7) else "thor"
    return profile.kind


def constants_for(profile: TargetProfile, runtime: str) -> Constants:
    """The constants of a device with a runtime.

    Raises:
        KeyError: no family has constants for this runtime.
    """
    for wanted in (profile.name, family(profile)):
        for entry in entries():
            if entry.of == wanted and entry.runtime == runtime:
                return as_constants(entry)
    raise KeyError(f"{runtime} on {family(profile)}")


def as_constants(entry: Entry) -> Constants:
    """What the forecast takes."""
    return Constants(
        runtime=entry.runtime,
        decode_efficiency=entry.decode_efficiency,
        layer_us_ghz=entry.layer_us_ghz,
        prefill_efficiency=entry.prefill_efficiency,
        vision_efficiency=entry.vision_efficiency,
        overhead_bytes=entry.overhead_gib * 2**30,
        basis=entry.basis,
    )


@cache
def entries(path: Path = PATH) -> tuple[Entry, ...]:
    """All of the file."""
    loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    return tuple(TypeAdapter(list[Entry]).validate_python(loaded))
