"""The flags of `edgevlm export` that stand for passes of the recipe.

In: what the user wrote, such as `--prune-weights wanda:2:4`. Out: entries of `Recipe.passes`, in the order of their
stages; their values are checked with the recipe's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from edgevlm.errors import InputError
from edgevlm.recipe import PassEntry

Function = TypeVar("Function", bound=Callable[..., None])

_OPTIONS = (
    click.option(
        "--prune-tokens",
        metavar="METHOD:K[,OPTION=VALUE]...",
        help="Keep K visual tokens of each image or tile; `edgevlm pruners` lists the methods.",
    ),
    click.option(
        "--drop-layers",
        metavar="N|kl=X[,by=answers]",
        help="Drop N decoder layers, or as many as a KL divergence allows.",
    ),
    click.option("--ffn-width", metavar="WIDTH|SHARE", help="Keep so many channels of each MLP, or this share."),
    click.option("--vocab", metavar="SOURCE", help="Keep the tokens of a text file, of scenes, or of the calibration."),
    click.option("--prune-weights", metavar="METHOD:SPARSITY[:BUDGET]", help="Zeros: wanda:0.5, sparsegpt:2:4, ..."),
    click.option(
        "--heal", metavar="STEPS[,FIELD=VALUE]...", help="Train the pruned model to answer like the original."
    ),
    click.option(
        "--quantize",
        metavar="SCHEME[,FIELD=VALUE]...",
        help="How the decoder's codes are chosen: w4-gptq, w4-awq, w8, auto, ...",
    ),
    click.option(
        "--budget",
        metavar="size=300MB|bits=4.5|kl=0.01|accuracy_drop=1.0",
        help="Choose the scheme of each layer so that this holds (--quantize auto).",
    ),
    click.option(
        "--kv-cache", type=click.Choice(["int8"]), help="With ONNX: keys and values in a quarter of the memory."
    ),
)


def pass_options(function: Function) -> Function:
    """Add the flags to a command, which gets them by name."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def passes_of(flags: dict[str, str | None]) -> tuple[PassEntry, ...]:
    """The passes that the flags stand for.

    Raises:
        InputError: a flag does not have its form.
    """
    flags = {**flags, "quantize": _budgeted(flags.get("quantize"), flags.get("budget"))}
    entries = [read(flags[name]) for name, read in _READERS.items() if flags.get(name) is not None]
    return tuple(PassEntry.model_validate(entry) for entry in entries)


def precisions_beside(quantize: str | None) -> dict[str, str]:
    """The recipe's fields that belong to what `--quantize` says, where no flag says them."""
    from edgevlm.quant.presets import PRESETS

    preset = PRESETS.get((quantize or "").partition(",")[0].partition(":")[0])
    if preset is None:
        return {}
    return {"precision": preset.precision, **({} if preset.vision is None else {"vision_precision": preset.vision})}


def _tokens(flag: str) -> dict[str, Any]:
    head, *pairs = flag.split(",")
    method, colon, keep = head.partition(":")
    options = _options(pairs)
    if not method or (colon and not keep) or options is None:
        raise InputError(
            f"{flag!r} does not say how to prune tokens", "--prune-tokens", "write METHOD:K, or METHOD:K,OPTION=VALUE"
        )
    fields = {"name": "prune_tokens", "method": method, "options": options}
    return {**fields, "keep": keep} if keep else fields


def _layers(flag: str) -> dict[str, Any]:
    much, *pairs = flag.split(",")
    field, equals, bound = much.partition("=")
    options = _options(pairs)
    if (equals and field != "kl") or options is None:
        hint = "write a number or kl=0.05, perhaps with ,by=answers"
        raise InputError(f"{flag!r} does not say how many layers", "--drop-layers", hint)
    return {"name": "shortgpt", **({"kl": bound} if equals else {"layers": much}), **options}


def _width(flag: str) -> dict[str, Any]:
    return {"name": "ffn_width", "keep" if "." in flag else "width": flag}


def _vocab(flag: str) -> dict[str, Any]:
    return {"name": "vocab"} if flag == "calibration" else {"name": "vocab", "corpus": flag}


def _weights(flag: str) -> dict[str, Any]:
    method, *rest = flag.split(":")
    budget = {"budget": rest.pop()} if rest and rest[-1].isalpha() else {}
    if not method or len(rest) not in (1, 2):
        raise InputError(
            f"{flag!r} does not say how to prune weights", "--prune-weights", "write wanda:0.5, wanda:2:4 or so"
        )
    return {"name": "prune_weights", "method": method, "sparsity": ":".join(rest), **budget}


def _heal(flag: str) -> dict[str, Any]:
    steps, *pairs = flag.split(",")
    options = _options(pairs)
    if options is None:
        raise InputError(f"{flag!r} does not say how to heal", "--heal", "write STEPS, or STEPS,n=2000,rank=16")
    return {"name": "heal", "steps": steps, **options}


def _quantize(flag: str) -> dict[str, Any]:
    scheme, *pairs = flag.split(",")
    options = _options(pairs)
    if not scheme or options is None:
        hint = "write a scheme such as w4-gptq, perhaps with ,group_size=64"
        raise InputError(f"{flag!r} does not say how to quantize", "--quantize", hint)
    return {"name": "quantize", "scheme": scheme, **options}


def _budgeted(quantize: str | None, budget: str | None) -> str | None:
    """What `--quantize` would say with the budget in it."""
    return quantize if budget is None else f"{quantize or 'auto'},budget={budget}"


def _options(pairs: list[str]) -> dict[str, str] | None:
    """`FIELD=VALUE` pairs; None where one is none."""
    return dict(pair.split("=", 1) for pair in pairs) if all("=" in pair for pair in pairs) else None


_READERS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "prune_tokens": _tokens,
    "drop_layers": _layers,
    "ffn_width": _width,
    "vocab": _vocab,
    "prune_weights": _weights,
    "heal": _heal,
    "quantize": _quantize,
    "kv_cache": lambda _int8: {"name": "kv_cache"},
}
