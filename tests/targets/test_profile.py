"""Profiles say of each number where it comes from, and what cannot be is refused with its file and field."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from edgevlm.errors import InputError
from edgevlm.targets.catalog import load_target, target_names
from edgevlm.targets.profile import read_profile

ROOT = Path(__file__).parent.parent.parent
PROFILES = ROOT / "targets" / "profiles"
WANTED = {
    *("jetson-orin-nano", "jetson-orin-nano-super", "jetson-orin-nx-8gb", "jetson-orin-nx-16gb"),
    *("jetson-agx-orin-32gb", "jetson-agx-orin-64gb", "jetson-agx-thor"),
    *(f"rtx-{number}" for number in (3060, 4060, 4070, 4090, 5060, 5070, 5090)),
    *("h100", "h200", "raspberry-pi-5", "rk3588", "intel-n100", "x86-laptop", "apple-m"),
}


def loaded(name: str = "jetson-orin-nano") -> dict[str, Any]:
    """A profile of the package as plain data, to be spoilt."""
    data = yaml.safe_load((PROFILES / f"{name}.yaml").read_text(encoding="utf-8"))
    assert isinstance(data, dict)
    return data


def refusal(tmp_path: Path, data: object) -> InputError:
    """The error of a profile file with this content."""
    path = tmp_path / "board.yaml"
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    with pytest.raises(InputError) as caught:
        read_profile(path)
    assert caught.value.where == str(path)
    assert "\n" not in caught.value.what
    return caught.value


def test_every_wanted_device_is_there() -> None:
    assert set(target_names()) >= WANTED


@pytest.mark.parametrize("path", sorted(PROFILES.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_profile_is_named_like_its_file(path: Path) -> None:
    profile = read_profile(path)
    assert profile.name == path.stem
    assert load_target(profile.name) == profile


def test_what_an_exporter_reads() -> None:
    nano, card, board = load_target("jetson-orin-nano"), load_target("rtx-4090"), load_target("raspberry-pi-5")
    assert nano.compute_capability == (8, 7)
    assert nano.tensorrt == ((10, 3), (10, 16, 0))
    assert nano.tensorrt_of("6.2.1") == (10, 3)
    assert (nano.preferred_format, board.preferred_format) == ("tensorrt", "gguf")
    assert card.compute_capability == (8, 9)
    assert card.tensorrt_rtx is not None and card.tensorrt_rtx.version == "1.7"
    assert (board.compute_capability, board.tensorrt, board.tensorrt_rtx) == (None, (), None)
    with pytest.raises(InputError, match=r"JetPack 5\.1"):
        nano.tensorrt_of("5.1")


def test_an_orin_nano_leaves_what_tegrastats_shows() -> None:
    """7607 MB in all, 519 of them taken at rest: a capture of the board under JetPack 6.2."""
    assert load_target("jetson-orin-nano").usable_bytes / 2**20 == pytest.approx(7607 - 519, abs=5)


@pytest.mark.parametrize(("module", "sparse_tops"), [("", 40), ("-super", 67)])
def test_tensor_peaks_give_the_published_sparse_rates(module: str, sparse_tops: float) -> None:
    figure = load_target(f"jetson-orin-nano{module}").compute.int8
    assert figure is not None and 2 * figure.value == pytest.approx(sparse_tops, rel=0.03)


@pytest.mark.parametrize(("number", "fp16_fast_sums", "int8"), [("4090", 330, 661), ("5090", 419, 838)])
def test_peaks_of_cards_are_those_of_the_whitepapers(number: str, fp16_fast_sums: float, int8: float) -> None:
    compute = load_target(f"rtx-{number}").compute
    assert compute.fp16 is not None and 2 * compute.fp16.value == pytest.approx(fp16_fast_sums, rel=0.01)
    assert compute.int8 is not None and compute.int8.value == pytest.approx(int8, rel=0.01)


@pytest.mark.parametrize(
    ("given", "nearest"),
    [("orin nano", "jetson-orin-nano"), ("RTX4090", "rtx-4090"), ("jetson-orin-nanno", "jetson-orin-nano")],
)
def test_an_unknown_name_is_told_the_nearest(given: str, nearest: str) -> None:
    with pytest.raises(InputError) as caught:
        load_target(given)
    assert nearest in caught.value.hint and given in caught.value.what


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("memory.total_gib.value", -8, "memory.total_gib.value"),
        ("memory.total_gib.value", 1e9, "memory.total_gib"),
        ("memory.reserved_gib.value", 8, "memory.reserved_gib"),
        ("memory.reserved_gib", None, "memory.reserved_gib"),
        ("bandwidth.theoretical_gb_s", None, "bandwidth"),
        ("bandwidth.theoretical_gb_s.value", float("inf"), "bandwidth.theoretical_gb_s.value"),
        ("bandwidth.theoretical_gb_s.source", None, "bandwidth.theoretical_gb_s.source"),
        ("compute.fp32.mark", "sure", "compute.fp32.mark"),
        ("compute.int8.value", 1.0, "compute.int8"),
        ("compute.fp4", {"value": 80, "mark": "memory", "source": "nobody"}, "compute.fp4"),
        ("gpu", None, "gpu"),
        ("gpu.value", 8.7, "gpu.value"),
        ("software.0.tensorrt", "ten", "software.0.tensorrt"),
        ("software.0.jetpack", None, "software.0.jetpack"),
        ("runtimes", ["vllm"], "runtimes.0"),
        ("watts", 15, "watts"),
        ("name", "../nano", "name"),
    ],
)
def test_impossible_and_missing_figures_are_named(tmp_path: Path, field: str, value: object, named: str) -> None:
    data = loaded()
    at: Any = data
    *path, last = field.split(".")
    for part in path:
        at = at[int(part)] if isinstance(at, list) else at[part]
    if value is None:
        del at[last]
    else:
        at[last] = value
    assert named in refusal(tmp_path, data).what


def test_power_must_grow_from_idle_to_limit(tmp_path: Path) -> None:
    data = loaded("jetson-orin-nano-super")
    data["power"]["idle_w"]["value"] = 23
    assert "idle_w, busy_w and limit_w" in refusal(tmp_path, data).what


def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path) -> None:
    assert "not a mapping" in refusal(tmp_path, ["jetson"]).what


def test_a_missing_file_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        load_target(str(tmp_path / "none.yaml"))
