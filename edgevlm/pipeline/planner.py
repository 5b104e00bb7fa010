"""The forecast of a recipe on a device, step by step, before anything is compressed or exported.

In: a recipe, the description of its model, a target profile, and a question (size of the image, length of its text and
of the answer). Out: an `Estimate`: what the model takes as published, and after each step of the recipe; and where it
does not fit, what would.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from edgevlm.errors import InputError, UnsupportedError
from edgevlm.models.cost import fusion_cost, vision_cost
from edgevlm.passes import Stage
from edgevlm.pipeline.description import Description
from edgevlm.pipeline.gguf_choice import gguf_type
from edgevlm.pipeline.passes import parse_passes
from edgevlm.pipeline.storage import Storage
from edgevlm.pipeline.support import refusal
from edgevlm.recipe import Recipe
from edgevlm.spec import ModelSpec
from edgevlm.targets.catalog import load_target, target_names
from edgevlm.targets.constants import RUNTIME_OF, constants_for
from edgevlm.targets.decoder_cost import cache_bytes, prefill_flops, prefill_scratch_bytes
from edgevlm.targets.profile import Format, TargetProfile
from edgevlm.targets.roofline import Constants, Forecast, Workload, forecast

_FLOAT32, _FLOAT16 = 4.0, 2.0
#: So many larger targets are named.
_NAMED = 2
#: Passes whose effect on a spec is known before they run.
_CACHE_PASS, _QUANTIZE_PASS = "kv_cache", "quantize"


@dataclass(frozen=True)
class Question:
    """What is asked, and how much memory is set aside.

    Attributes:
        image_width, image_height: in pixels.
        text_tokens: of the prompt beside the image.
        answer_tokens: of the answer.
        context: positions of the cache; None takes what the model allows, at most 4096.
    """

    image_width: int = 1024
    image_height: int = 768
    text_tokens: int = 32
    answer_tokens: int = 64
    context: int | None = None


@dataclass(frozen=True)
class Step:
    """The model after one step; `note` says what the forecast does not know of it."""

    name: str
    work: Workload
    forecast: Forecast
    note: str = ""


@dataclass(frozen=True)
class Remedy:
    """A change that makes the model fit."""

    change: str
    peak_bytes: float


@dataclass(frozen=True)
class Estimate:
    """The forecast of a recipe; the last step is the recipe as a whole.

    Where it does not fit, `remedies` are changes that make it fit, and `larger_targets` devices of the kind that have
    the memory, smallest first.
    """

    model: str
    target: TargetProfile
    storage: Storage
    constants: Constants
    question: Question
    steps: tuple[Step, ...]
    remedies: tuple[Remedy, ...] = ()
    larger_targets: tuple[str, ...] = ()

    @property
    def result(self) -> Step:
        """The model as the recipe makes it."""
        return self.steps[-1]


def forecast_recipe(
    recipe: Recipe, described: Description, target: TargetProfile, question: Question, format_: Format
) -> Estimate:
    """Forecast a recipe for a model on a target.

    Args:
        recipe: what is made of the model.
        described: the model.
        target: the device.
        question: what is asked.
        format_: of the artefacts.

    Raises:
        InputError: the recipe or the question cannot be used.
        UnsupportedError: a pass does not fit the model, or the target does not run the format.
    """
    if format_ == "tensorrt" and target.kind == "cpu":
        what = f"{target.name} has no NVIDIA GPU, which TensorRT needs"
        raise UnsupportedError(what, "--format tensorrt", "use --format onnx or gguf")
    if question.context is None and recipe.context_length is not None:
        question = dataclasses.replace(question, context=recipe.context_length)
    recipe = recipe.model_copy(update={"format": format_})
    planner = _Planner(described, target, constants_for(target, RUNTIME_OF[format_]), question)
    storage = storage_of(recipe, format_)
    steps = tuple(planner.steps(recipe, storage))
    reason = refusal(planner.spec, format_, storage.precision, storage.gguf_type, storage.vision_precision)
    if reason is not None:
        what = f"cannot export {described.spec.name} to {format_}: {reason}"
        raise UnsupportedError(what, recipe.model, "see docs/export.md")
    found = Estimate(described.spec.name, target, storage, planner.constants, question, steps)
    if found.result.forecast.fits:
        return found
    larger = _larger_targets(target, found.result.forecast.peak.total)
    return dataclasses.replace(found, remedies=planner.remedies(), larger_targets=larger)


def _larger_targets(target: TargetProfile, needed: float) -> tuple[str, ...]:
    """Targets of the kind with enough memory, smallest first."""
    others = [load_target(name) for name in target_names()]
    enough = [other for other in others if other.kind == target.kind and other.usable_bytes >= needed]
    return tuple(other.name for other in sorted(enough, key=lambda other: other.memory_bytes)[:_NAMED])


def storage_of(recipe: Recipe, format_: Format) -> Storage:
    """How the recipe stores a model in a format."""
    vision = recipe.vision_precision or ("fp32" if recipe.precision == "fp32" else "fp16")
    return Storage(format_, recipe.precision, "fp16" if vision == "auto" else vision, gguf_type(recipe))


class _Planner:
    """Walks through a recipe; `spec` and `storage` are those of the last step."""

    def __init__(self, described: Description, target: TargetProfile, constants: Constants, question: Question) -> None:
        self.described = described
        self.target = target
        self.constants = constants
        self.question = question
        self.spec = described.spec
        self.storage = Storage("onnx", "fp16", "fp16", "f16")

    def steps(self, recipe: Recipe, wanted: Storage) -> Iterator[Step]:
        """The model as published in float16, then after each step."""
        self.storage = Storage(wanted.format, "fp16", "fp16", "f16")
        yield self._step("float16, as published")
        for each in parse_passes(recipe):
            reason = each.applies_to(self.spec)
            if reason is not None:
                what = f"{each.name} cannot be used on {self.spec.name}: {reason}"
                raise UnsupportedError(what, "recipe field 'passes'", f"see {each.page}")
            if each.name == _QUANTIZE_PASS:
                continue
            before, self.spec = self.spec, each.planned(self.spec)
            if each.name == _CACHE_PASS:
                self.storage = dataclasses.replace(self.storage, narrow_cache=True)
            unknown = each.stage == Stage.STRUCTURE and self.spec == before
            yield self._step(each.name, "how much smaller is known only when it has run" if unknown else "")
        narrow = self.storage.narrow_cache
        if wanted.precision != "fp16":
            kept = dataclasses.replace(wanted, vision_precision=self.storage.vision_precision, narrow_cache=narrow)
            self.storage = kept
            label = wanted.gguf_type if wanted.format == "gguf" else wanted.precision
            yield self._step(f"decoder in {label}")
        if wanted.vision_precision != "fp16":
            self.storage = dataclasses.replace(wanted, narrow_cache=narrow)
            yield self._step(f"vision in {wanted.vision_precision}")

    def remedies(self) -> tuple[Remedy, ...]:
        """Changes of the last step that make the model fit: each by itself, or where none does, all together."""
        spec, storage = self.spec, self.storage
        changes: dict[str, Storage] = {}
        if storage.precision != "int4":
            changes["--precision int4"] = dataclasses.replace(storage, precision="int4", gguf_type="q4_0")
        if storage.vision_precision != "w8a8":
            changes["--vision-precision w8a8"] = dataclasses.replace(storage, vision_precision="w8a8")
        if storage.format == "onnx" and not storage.narrow_cache:
            changes["--kv-cache int8"] = dataclasses.replace(storage, narrow_cache=True)
        needed = self.workload(spec, storage, None).prompt_tokens + self.question.answer_tokens
        contexts = [size for size in (2048, 1024, 512) if needed <= size < self.context(spec)]
        alone = [self._remedy(change, changed, None) for change, changed in changes.items()]
        alone += [self._remedy(f"--context {size}", storage, size) for size in contexts[:1]]
        if any(alone):
            return tuple(remedy for remedy in alone if remedy is not None)
        together = dataclasses.replace(
            storage,
            precision="int4",
            gguf_type="q4_0",
            vision_precision="w8a8",
            narrow_cache=storage.narrow_cache or storage.format == "onnx",
        )
        words = [*changes, *(f"--context {size}" for size in contexts[-1:])]
        last = self._remedy(" ".join(words), together, min(contexts, default=None))
        return () if last is None else (last,)

    def _remedy(self, change: str, storage: Storage, context: int | None) -> Remedy | None:
        """The change, if the model fits with it."""
        work = self.workload(self.spec, storage, context)
        expected = forecast(work, self.target, self.constants, self.question.answer_tokens)
        return Remedy(change, expected.peak.total) if expected.fits else None

    def context(self, spec: ModelSpec) -> int:
        """Positions that memory is planned for."""
        return min(self.question.context or 4096, spec.decoder.max_position_embeddings)

    def _step(self, name: str, note: str = "") -> Step:
        work = self.workload(self.spec, self.storage, None)
        return Step(name, work, forecast(work, self.target, self.constants, self.question.answer_tokens), note)

    def workload(self, spec: ModelSpec, storage: Storage, context: int | None) -> Workload:
        """The question to one model, stored in one way, in bytes and operations."""
        ask, decoder = self.question, spec.decoder
        image = self.described.image(spec, ask.image_width, ask.image_height)
        vision, fusion = vision_cost(spec, image.height, image.width), fusion_cost(spec, ask.text_tokens)
        prompt = image.positions + ask.text_tokens
        positions = context or self.context(spec)
        if prompt + ask.answer_tokens > positions:
            what = f"{prompt} positions of the prompt and {ask.answer_tokens} of the answer exceed {positions}"
            raise InputError(what, "--context", "give a larger context, a smaller image or a shorter answer")
        vision_dtype, prefill_dtype = storage.computes_in(self.target)
        value = _FLOAT32 if self.target.kind == "cpu" else _FLOAT16
        # Positions of the image that a dropping decoder counts by; text between tiles stays.
        tokens = image.positions if decoder.token_drop is None else decoder.token_drop.image_tokens
        return Workload(
            weights=storage.weights(spec, self.target),
            layers=decoder.num_hidden_layers,
            image_tokens=image.positions,
            prompt_tokens=prompt,
            vision_flops=image.runs * vision.flops + fusion.flops,
            vision_dtype=vision_dtype,
            vision_scratch_bytes=vision.peak_bytes * value / _FLOAT32,
            prefill_flops=prefill_flops(decoder, tokens, prompt - tokens),
            prefill_dtype=prefill_dtype,
            prefill_scratch_bytes=prefill_scratch_bytes(decoder, prompt, value),
            context=positions,
            cache_bytes=cache_bytes(decoder, tokens, positions, storage.cache_value_bytes),
            cache_read_bytes=cache_bytes(decoder, tokens, prompt, storage.cache_value_bytes),
        )
