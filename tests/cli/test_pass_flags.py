"""Flags that stand for passes: they become the entries that a recipe would hold, in the order of their stages."""

from pathlib import Path
from typing import Any

import pytest

from edgevlm.cli import main
from edgevlm.cli.pass_flags import passes_of, precisions_beside
from edgevlm.errors import InputError
from edgevlm.pipeline.passes import parse_passes
from edgevlm.quant.presets import PRESETS
from edgevlm.recipe import Recipe


@pytest.mark.parametrize(
    ("flag", "value", "fields"),
    [
        ("prune_weights", "wanda:2:4", {"method": "wanda", "sparsity": "2:4", "budget": "uniform"}),
        ("prune_weights", "sparsegpt:0.6:ecoflap", {"method": "sparsegpt", "sparsity": 0.6, "budget": "ecoflap"}),
        ("drop_layers", "3", {"layers": 3, "kl": None}),
        ("drop_layers", "kl=0.05", {"layers": None, "kl": 0.05}),
        ("drop_layers", "2,by=answers", {"layers": 2, "by": "answers"}),
        ("ffn_width", "3584", {"width": 3584, "keep": None, "multiple": 64}),
        ("ffn_width", "0.75", {"width": None, "keep": 0.75, "multiple": 64}),
        ("vocab", "scenes", {"corpus": "scenes"}),
        ("vocab", "calibration", {"corpus": None}),
        ("heal", "200,n=2000,rank=16", {"steps": 200, "n": 2000, "rank": 16}),
        ("quantize", "w4-gptq,group_size=64,symmetric=false", {"group_size": 64, "symmetric": False}),
        ("quantize", "auto,budget=bits=4.5", {"scheme": "auto", "budget": "bits=4.5"}),
    ],
)
def test_a_flag_is_the_pass_with_its_fields(flag: str, value: str, fields: dict[str, Any]) -> None:
    (made,) = parse_passes(Recipe(model="m", passes=passes_of({flag: value})))
    found = made.config.model_dump()
    assert {name: found[name] for name in fields} == fields


@pytest.mark.parametrize("scheme", [*PRESETS, "w4-gptq:32,damping=0.1"])
def test_a_scheme_brings_the_precisions_that_it_needs(scheme: str) -> None:
    format_ = {"format": "gguf"} if scheme in ("q4_0", "q8_0") else {}
    flags = {"model": "m", **format_, **precisions_beside(scheme)}
    assert parse_passes(Recipe.model_validate({**flags, "passes": passes_of({"quantize": scheme})}))


@pytest.mark.parametrize("quantize", [None, "auto"])
def test_a_budget_is_for_auto(quantize: str | None) -> None:
    (entry,) = passes_of({"quantize": quantize, "budget": "bits=4.5"})
    assert entry.model_dump() == {"name": "quantize", "scheme": "auto", "budget": "bits=4.5"}


def test_a_budget_beside_a_fixed_scheme_is_refused() -> None:
    with pytest.raises(InputError, match="budget needs scheme auto"):
        parse_passes(Recipe(model="m", passes=passes_of({"quantize": "w4-gptq", "budget": "bits=4.5"})))


def test_a_type_of_llama_cpp_is_named_with_its_flag() -> None:
    with pytest.raises(InputError, match="write --format gguf --gguf-type q4_k_m"):
        parse_passes(Recipe(model="m", passes=passes_of({"quantize": "q4_k_m"})))


def test_flags_stand_in_the_order_of_their_stages() -> None:
    flags = {"heal": "10", "prune_weights": "wanda:0.5", "vocab": "scenes", "prune_tokens": "uniform:4"}
    names = [entry.name for entry in passes_of({**flags, "ffn_width": None})]
    assert names == ["prune_tokens", "vocab", "prune_weights", "heal"]
    assert len(parse_passes(Recipe(model="m", passes=passes_of(flags)))) == 4


@pytest.mark.parametrize(
    ("flag", "value"),
    [("prune_weights", "wanda"), ("prune_weights", ":0.5"), ("drop_layers", "layers=3"), ("heal", "10,n"),
     ("prune_tokens", ":4"), ("prune_weights", "wanda:1:2:3:4"), ("quantize", "w4-gptq,64")],
)  # fmt: skip
def test_flags_without_form_are_refused(flag: str, value: str) -> None:
    with pytest.raises(InputError) as caught:
        passes_of({flag: value})
    assert caught.value.where == f"--{flag.replace('_', '-')}"
    assert caught.value.hint


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--prune-weights", "wanda:0.5"], "prune_weights needs calibration images and there are none"),
        (["--prune-weights", "wanda:0.5", "--calibrate", "EMPTY"], "there is no calibration image that can be read"),
        (["--prune-weights", "wanda:7"], "prune_weights field 'sparsity'"),
        (["--prune-weights", "wander:0.5"], "prune_weights field 'method'"),
        (["--prune-weights", "wanda:0.5:fair"], "prune_weights field 'budget'"),
        (["--heal", "10"], "heal needs calibration images and there are none"),
        (
            ["--drop-layers", "4", "--calibrate", "scenes", "-n", "2"],
            "shortgpt cannot be used on nano-fastvlm: it has 4",
        ),
        (["--drop-layers", "kl=1e-9", "--calibrate", "scenes", "-n", "2"], "no decoder layer can go within KL"),
        (["--ffn-width", "500", "--calibrate", "scenes"], "width 500 is not a multiple of 64"),
        (["--ffn-width", "512", "--calibrate", "scenes"], "its MLPs have 512 channels, so 512 are not fewer"),
        (["--vocab", "EMPTY/absent.txt"], "there is no such text"),
        (["-n", "4"], "-n says nothing without --calibrate"),
    ],
)
def test_bad_input_takes_three_lines_and_exit_code_2(
    arguments: list[str], what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    given = [argument.replace("EMPTY", str(tmp_path / "empty")) for argument in arguments]
    with pytest.raises(SystemExit) as caught:
        main(["export", "zoo:nano-fastvlm", "-o", str(tmp_path / "out"), *given])
    assert caught.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["error", "where", "hint"]
    assert what in lines[0]
    assert not (tmp_path / "out").exists()
