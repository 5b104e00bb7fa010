"""A study without a model: bundles that hold nothing; `study_worker` answers for them by their names."""

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from bench_bundles import hollow_bundle, settings
from reducer_models import SIGLIP, vision_spec
from specs import TINY

from edgevlm.bench.baseline import Reference
from edgevlm.bench.report import Report
from edgevlm.bench.stats import summarise
from edgevlm.bench.study import run, shelf, timing
from edgevlm.bench.study.plan import parse_methods
from edgevlm.bundle import Bundle
from edgevlm.cli.pass_flags import passes_of
from edgevlm.errors import ParityError, UnsupportedError
from edgevlm.recipe import PassEntry, Recipe

#: 36 tokens, no class token, layers enough for any method inside the decoder.
SPEC = replace(TINY, vision=vision_spec(SIGLIP), decoder=replace(TINY.decoder, num_hidden_layers=8))
METHODS = ("uniform", "random", "divprune", "pool", "fastervlm", "attention", "resolution", "fastv")


def read_flag(flag: str) -> PassEntry:
    """As the command line reads it."""
    return passes_of({"prune_tokens": flag})[0]


def request(
    out: Path, methods: tuple[str, ...] = METHODS, percents: tuple[float, ...] = (50, 25), **changes: Any
) -> Any:
    """A small study; `settings` are those of `bench_bundles` with some changes."""
    options = {name: changes.pop(name) for name in ("restart", "retry", "save_bundles", "timing") if name in changes}
    fields = {"items": 24, "iterations": 6, "warmup": 1, "cached": 0, "silence_s": 300, **changes}
    return run.Request(
        recipe=Recipe(model="zoo:hollow", precision="fp32"),
        methods=parse_methods(",".join(methods)),
        percents=percents,
        settings=settings(**fields),
        out=out,
        read_flag=read_flag,
        **options,
    )


def prepare(patch: pytest.MonkeyPatch) -> list[str]:
    """Put the fakes in place; returns the flags of the bundles that are made, as they are made."""
    made: list[str] = []

    def compile_recipe(recipe: Recipe, out: Path, **_: Any) -> Bundle:
        entry = recipe.passes[0].fields if recipe.passes else {"method": "unpruned", "keep": ""}
        made.append(f"{entry['method']}:{entry.get('keep', '')}".rstrip(":"))
        if entry["method"] == "resolution":
            raise ParityError("the exported model does not answer like the original", str(out))
        if entry["method"] == "fastv":
            raise UnsupportedError("cannot export hollow to gguf: llama.cpp has no such graph", str(out))
        shutil.rmtree(out, ignore_errors=True)
        return hollow_bundle(out)

    patch.setenv("PYTHONPATH", str(Path(__file__).parent))
    patch.setattr(shelf, "compile_recipe", compile_recipe)
    patch.setattr(run, "load", lambda *_, **__: SimpleNamespace(spec=SPEC))
    patch.setattr(run, "find_reference", lambda model: Reference(model, Path(), "0" * 64))
    patch.setattr(timing, "method_cost", lambda *_: summarise([0.1 + index / 1000 for index in range(20)]))
    return made


def study(asked: Any) -> Report:
    """Its report."""
    return run.study_pruning(asked, progress=lambda *_: None, worker="study_worker:serve")
