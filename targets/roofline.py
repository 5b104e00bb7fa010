"""The forecast: how long the stages of an answer take on a device, and how much memory, from numbers alone.

In: a `Workload` (bytes and operations of a model), a `TargetProfile` and `Constants` (how much of its peaks the device
reached in published runs). Out: a `Forecast`.

    token    = layers * layer time + (weights read + cache read) / (decode efficiency * bandwidth)
    prefill  = layers * layer time + weights read / (decode efficiency * bandwidth)
               + operations / (prefill efficiency * peak of the type)
    vision   = operations / (vision efficiency * peak of the type)

Reading weights and computing add up in a prefill of a few hundred positions, as packed weights are unpacked before they
are multiplied; the longer of both reproduces the published prefills less well (docs/targets.md).
"""

from __future__ import annotations

from dataclasses import dataclass

from edgevlm.targets.profile import Compute, Figure, TargetProfile

#: What a type is computed in where a device has no units for it, nearest first.
_INSTEAD = {
    "fp4": ("fp4", "fp8", "int8", "fp16", "bf16", "fp32"),
    "fp8": ("fp8", "fp16", "bf16", "fp32"),
    "int8": ("int8", "fp16", "bf16", "fp32"),
    "fp16": ("fp16", "bf16", "fp32"),
    "fp32": ("fp32",),
}


@dataclass(frozen=True)
class Weights:
    """The weights of one component.

    Attributes:
        name: of the component.
        parameters: in it.
        stored_bytes: in the bundle.
        resident_bytes: in memory while it runs; more than stored where the engine widens them.
        token_bytes: of these, read for every token.
    """

    name: str
    parameters: int
    stored_bytes: int
    resident_bytes: int
    token_bytes: int = 0


@dataclass(frozen=True)
class Workload:
    """One question about an image, in bytes and operations (a multiply-add counts as two).

    Attributes:
        weights: by component.
        layers: of the decoder.
        image_tokens: positions of the image in the prompt.
        prompt_tokens: all positions of the prompt.
        vision_flops: of the image, with what stands between vision and decoder.
        vision_dtype, prefill_dtype: what is multiplied.
        vision_scratch_bytes: activations at their peak.
        prefill_flops: of the prompt.
        prefill_scratch_bytes: activations at their peak.
        context: positions that memory is planned for.
        cache_bytes: keys and values of the whole context.
        cache_read_bytes: keys and values read for a token right behind the prompt.
    """

    weights: tuple[Weights, ...]
    layers: int
    image_tokens: int
    prompt_tokens: int
    vision_flops: float
    vision_dtype: str
    vision_scratch_bytes: float
    prefill_flops: float
    prefill_dtype: str
    prefill_scratch_bytes: float
    context: int
    cache_bytes: float
    cache_read_bytes: float

    @property
    def parameters(self) -> int:
        """Of all components."""
        return sum(part.parameters for part in self.weights)

    @property
    def stored_bytes(self) -> int:
        """Of all components."""
        return sum(part.stored_bytes for part in self.weights)

    @property
    def token_bytes(self) -> int:
        """Weights that one token reads."""
        return sum(part.token_bytes for part in self.weights)


@dataclass(frozen=True)
class Constants:
    """What share of its peaks a device reaches with one runtime.

    Attributes:
        runtime: whose.
        decode_efficiency: of the bandwidth.
        layer_us_ghz: of each decoder layer and token, in microseconds at a GPU clock of 1 GHz; as they are on a CPU.
        prefill_efficiency: of the dense peak.
        vision_efficiency: of the dense peak.
        overhead_bytes: memory of the runtime itself.
        basis: where they come from, in words.
    """

    runtime: str
    decode_efficiency: float
    layer_us_ghz: float
    prefill_efficiency: float
    vision_efficiency: float
    overhead_bytes: float
    basis: str


@dataclass(frozen=True)
class Peak:
    """Memory at its fullest, in bytes: weights and cache stay, the larger scratch counts."""

    weights: float
    cache: float
    scratch: float
    overhead: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.weights + self.cache + self.scratch + self.overhead


@dataclass(frozen=True)
class Forecast:
    """What to expect.

    Attributes:
        vision_ms, prefill_ms: of one image, and of its prompt.
        token_ms: of each token behind the prompt.
        answer_tokens: of the answer that `answer_ms` and `answer_joules` are for.
        peak: memory.
        usable_bytes: of the device.
        watts: while it answers; None where the profile has no figure.
        watts_are_a_limit: `watts` is the most that the device may draw, so that joules are an upper bound.
    """

    vision_ms: float
    prefill_ms: float
    token_ms: float
    answer_tokens: int
    peak: Peak
    usable_bytes: int
    watts: float | None
    watts_are_a_limit: bool

    @property
    def ttft_ms(self) -> float:
        """Vision and prefill; reading and resizing the image is not counted."""
        return self.vision_ms + self.prefill_ms

    @property
    def tokens_per_second(self) -> float:
        """Of decoding."""
        return 1000.0 / self.token_ms

    @property
    def answer_ms(self) -> float:
        """Of the whole answer; its first token comes with the prefill."""
        return self.ttft_ms + (self.answer_tokens - 1) * self.token_ms

    @property
    def answer_joules(self) -> float | None:
        """Energy of the whole answer."""
        return None if self.watts is None else self.watts * self.answer_ms / 1000.0

    @property
    def short_bytes(self) -> float:
        """What is missing; zero or less where it fits."""
        return self.peak.total - self.usable_bytes

    @property
    def fits(self) -> bool:
        """Whether the memory is enough."""
        return self.short_bytes <= 0


def forecast(work: Workload, profile: TargetProfile, constants: Constants, answer_tokens: int = 64) -> Forecast:
    """Time, memory and energy of a workload on a device.

    Args:
        work: of one question.
        profile: of the device.
        constants: of the device with the runtime in question.
        answer_tokens: length of the answer that energy is counted for.
    """
    bytes_per_ms = constants.decode_efficiency * bandwidth(profile) * 1e6
    step_ms = work.layers * constants.layer_us_ghz / clock_ghz(profile) / 1000.0
    read_ms = step_ms + work.token_bytes / bytes_per_ms
    scratch = max(work.vision_scratch_bytes, work.prefill_scratch_bytes)
    resident = sum(part.resident_bytes for part in work.weights)
    busy, limit = profile.power.busy_w, profile.power.limit_w
    watts = busy or limit
    return Forecast(
        vision_ms=compute_ms(work.vision_flops, profile, work.vision_dtype, constants.vision_efficiency),
        prefill_ms=read_ms + compute_ms(work.prefill_flops, profile, work.prefill_dtype, constants.prefill_efficiency),
        token_ms=read_ms + work.cache_read_bytes / bytes_per_ms,
        answer_tokens=answer_tokens,
        peak=Peak(resident, work.cache_bytes, scratch, constants.overhead_bytes),
        usable_bytes=profile.usable_bytes,
        watts=None if watts is None else watts.value,
        watts_are_a_limit=busy is None and limit is not None,
    )


def bandwidth(profile: TargetProfile) -> float:
    """GB/s that efficiencies are shares of: on a GPU the theoretical, on a CPU the sustained where it is known."""
    theoretical, sustained = profile.bandwidth.theoretical_gb_s, profile.bandwidth.sustained_gb_s
    first, second = (sustained, theoretical) if profile.kind == "cpu" else (theoretical, sustained)
    chosen = first or second
    assert chosen is not None, "a profile has one of them"
    return chosen.value


def clock_ghz(profile: TargetProfile) -> float:
    """Of the GPU; 1 where there is none, or where the profile does not tell."""
    return 1.0 if profile.gpu_clock_ghz is None else profile.gpu_clock_ghz.value


def peak_rate(compute: Compute, dtype: str) -> float:
    """Dense tera operations a second in a type, or in what stands in for it."""
    figures = (getattr(compute, name) for name in _INSTEAD[dtype])
    return next(figure.value for figure in figures if isinstance(figure, Figure))


def compute_ms(flops: float, profile: TargetProfile, dtype: str, efficiency: float) -> float:
    """Milliseconds of so many operations."""
    return flops / (efficiency * peak_rate(profile.compute, dtype) * 1e9)
