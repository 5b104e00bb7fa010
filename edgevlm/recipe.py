"""The recipe: everything that, with a checkpoint, determines a bundle.

A recipe is data. YAML and command-line flags fill the same fields; unknown fields are refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgevlm.errors import InputError
from edgevlm.validation import first_problem

Precision = Literal["fp32", "fp16", "int8", "int4"]
#: `w8a8` computes in int8, with ranges from calibration images; the others are how weights are stored.
VisionPrecision = Literal["fp32", "fp16", "int8", "int4", "w8a8"]
#: What the 16 bits of fp16 are in a TensorRT bundle, and what its narrower weights are computed in.
TensorRtDtype = Literal["fp16", "bf16"]
#: How a file stores its weights.
StoredPrecision = VisionPrecision | Literal["bf16"]
#: `auto` is w8a8 where that is really faster on this machine, else fp16.
VisionChoice = VisionPrecision | Literal["auto"]
Format = Literal["onnx", "gguf", "tensorrt"]
GgufType = Literal["f32", "f16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q4_k_m"]
Imatrix = Literal["auto", "keep", "off"]


class VerifyThresholds(BaseModel):
    """Overrides of the verification table; None takes the value for the precision (`edgevlm.verify`)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    vision_cosine: float | None = Field(default=None, ge=0, le=1)
    logits_cosine: float | None = Field(default=None, ge=-1, le=1)
    top1_agreement: float | None = Field(default=None, ge=0, le=1)
    token_agreement: float | None = Field(default=None, ge=0, le=1)
    fusion_cosine: float | None = Field(default=None, ge=0, le=1)
    kept_tokens: float | None = Field(default=None, ge=0, le=1)


class PassEntry(BaseModel):
    """One pass by its name; the other fields are the pass's own, which the host half knows and checks."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str = Field(min_length=1)

    @property
    def fields(self) -> dict[str, Any]:
        """What the user wrote for the pass."""
        return dict(self.model_extra or {})


class CalibrationData(BaseModel):
    """Images and questions that passes may look at.

    Attributes:
        source: `scenes`, a folder of images, or a `.jsonl` file of images and prompts.
        n: at most so many samples.
        memory_gb: of their activations and of changed weights this much is held in memory, the rest on disk.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str = Field(min_length=1)
    n: int = Field(default=128, gt=0, le=1_000_000)
    memory_gb: float = Field(default=4.0, ge=0)


class Recipe(BaseModel):
    """What to make of a checkpoint.

    Attributes:
        model: a folder, a `zoo:` name, or a hub id.
        passes: what makes the model smaller before it is exported, in this order.
        calibration: for passes that look at images; None where there are none.
        format: the artefact family to write.
        precision: weights of the decoder and its embedding.
        gguf_type: the exact GGUF type where `format` is gguf; None derives it from `precision`.
        imatrix: the images of `calibration`, where there are some, weigh the errors of a GGUF's matrices (`auto`); the
            same, and `imatrix.gguf` is kept in the bundle (`keep`); or they do not (`off`).
        vision_precision: of the vision tower; None takes fp16 unless `precision` is fp32. w8a8 and auto need
            `calibration`.
        tensorrt_version: what graphs of format tensorrt are written for; None takes the target's, or the newest known.
        tensorrt_dtype: what graphs of format tensorrt compute in where they do not in float32, and what their 16-bit
            weights are; None takes fp16.
        context_length: positions of the key/value cache, which format tensorrt fixes; None takes 4096 at most.
        mmproj: beside a GGUF, also write the vision side as llama.cpp's own image support reads it.
        resolution: input pixels along one side, a multiple of the encoder's stride; None keeps the checkpoint's.
        prompt_template: one of the family's templates, by name; None keeps the checkpoint's.
        target: a device profile by name, or a file that ends in .yaml; `cpu` is the machine at hand.
        verify: thresholds that differ from the table.
        seed: for everything drawn at random.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(min_length=1)
    passes: tuple[PassEntry, ...] = ()
    calibration: CalibrationData | None = None
    format: Format = "onnx"
    precision: Precision = "int4"
    gguf_type: GgufType | None = None
    imatrix: Imatrix = "auto"
    vision_precision: VisionChoice | None = None
    tensorrt_version: str | None = Field(default=None, pattern=r"^\d{1,3}(\.\d{1,3}){1,3}$")
    tensorrt_dtype: TensorRtDtype | None = None
    context_length: int | None = Field(default=None, gt=0)
    mmproj: bool = False
    resolution: int | None = Field(default=None, gt=0)
    prompt_template: str | None = None
    target: str = "cpu"
    verify: VerifyThresholds = VerifyThresholds()
    seed: int = 0

    @classmethod
    def from_sources(cls, file: Path | None, flags: dict[str, Any]) -> Recipe:
        """Merge a YAML file with command-line flags; a flag that was given (not None) wins.

        Raises:
            InputError: the file is unreadable, not a mapping, or a field is unknown or out of range.
        """
        fields: dict[str, Any] = {}
        if file is not None:
            try:
                loaded = yaml.safe_load(file.read_text(encoding="utf-8"))
            except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
                first = str(error).splitlines()[0]
                raise InputError(f"the recipe cannot be read: {first}", str(file), "write a YAML mapping") from error
            if not isinstance(loaded, dict):
                raise InputError("the recipe is not a mapping", str(file), "write a YAML mapping of recipe fields")
            fields.update({str(key): value for key, value in loaded.items()})
        fields.update({key: value for key, value in flags.items() if value is not None})
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            field, problem = first_problem(error)
            raise InputError(
                f"recipe field {field!r}: {problem}",
                str(file or "command line"),
                f"fields: {', '.join(cls.model_fields)}",
            ) from error
