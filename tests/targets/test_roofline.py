"""The forecast is arithmetic: each term does what its formula says."""

import dataclasses

import pytest

from edgevlm.targets.catalog import load_target
from edgevlm.targets.roofline import Constants, Weights, Workload, bandwidth, forecast, peak_rate

CONSTANTS = Constants("tensorrt", 0.5, 100.0, 0.25, 0.5, 1e9, "by hand")
WORK = Workload(
    weights=(Weights("vision", 10, 20, 20), Weights("decoder", 10**9, 10**9, 10**9, 10**9)),
    layers=10,
    image_tokens=256,
    prompt_tokens=300,
    vision_flops=1e12,
    vision_dtype="fp16",
    vision_scratch_bytes=4e8,
    prefill_flops=1e12,
    prefill_dtype="fp16",
    prefill_scratch_bytes=1e8,
    context=4096,
    cache_bytes=5e8,
    cache_read_bytes=1e8,
)
NANO = load_target("jetson-orin-nano")


def test_each_stage_is_what_its_formula_says() -> None:
    """68.3 GB/s, 10.2 TFLOPS and 0.625 GHz, by hand."""
    expected = forecast(WORK, NANO, CONSTANTS)
    layers = 10 * 100 / 0.625 / 1000
    read = 1e9 / (0.5 * 68.3e6)
    assert expected.token_ms == pytest.approx(layers + read + 1e8 / (0.5 * 68.3e6))
    assert expected.tokens_per_second == pytest.approx(1000 / expected.token_ms)
    assert expected.vision_ms == pytest.approx(1e12 / (0.5 * 10.2e9))
    assert expected.prefill_ms == pytest.approx(layers + read + 1e12 / (0.25 * 10.2e9))
    assert expected.ttft_ms == pytest.approx(expected.vision_ms + expected.prefill_ms)


def test_memory_is_what_stays_and_the_larger_scratch() -> None:
    expected = forecast(WORK, NANO, CONSTANTS)
    assert expected.peak.total == pytest.approx(1e9 + 20 + 5e8 + 4e8 + 1e9)
    assert expected.fits and expected.short_bytes == pytest.approx(expected.peak.total - NANO.usable_bytes)
    larger = dataclasses.replace(WORK, cache_bytes=9e9)
    assert not forecast(larger, NANO, CONSTANTS).fits
    assert forecast(larger, NANO, CONSTANTS).short_bytes == pytest.approx(11.4e9 + 20 - NANO.usable_bytes)


def test_energy_is_power_times_the_answer() -> None:
    board = load_target("jetson-orin-nano-super")
    expected = forecast(WORK, board, CONSTANTS, answer_tokens=11)
    assert expected.answer_ms == pytest.approx(expected.ttft_ms + 10 * expected.token_ms)
    assert expected.answer_joules == pytest.approx(21.1 * expected.answer_ms / 1000)
    assert not expected.watts_are_a_limit
    assert forecast(WORK, NANO, CONSTANTS).watts_are_a_limit
    assert forecast(WORK, load_target("raspberry-pi-5"), CONSTANTS).answer_joules is None


def test_cpus_are_measured_by_what_they_sustain() -> None:
    assert bandwidth(load_target("raspberry-pi-5")) == 11.4
    assert bandwidth(NANO) == 68.3


def test_a_type_without_units_is_computed_in_a_wider_one() -> None:
    n100 = load_target("intel-n100").compute
    assert peak_rate(n100, "int8") == 0.8
    assert peak_rate(n100, "fp16") == peak_rate(n100, "fp32") == 0.2
    assert peak_rate(load_target("h100").compute, "fp4") == 1978.9
