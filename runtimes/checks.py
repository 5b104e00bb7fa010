"""What every engine checks alike: thread count, context length, room in the context, shape of the image embeddings."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence

import numpy as np

from edgevlm.errors import BundleError, EdgeVLMError, EngineError, InputError
from edgevlm.runtimes.base import Encoded, EngineOptions, Float32, Int64

DEFAULT_CONTEXT = 4096
HINT = EngineError.usual_hint


def thread_count(requested: int) -> int:
    """`requested`, or, where that is 0, the physical cores that this process may use (at least 1).

    Raises:
        InputError: fewer than none were asked for.
    """
    if requested < 0:
        raise InputError(f"an engine cannot use {requested} threads", "threads", "give 0 for all cores, or a number")
    if requested > 0:
        return requested
    import psutil

    logical = os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else logical
    return max(1, min(allowed, psutil.cpu_count(logical=False) or logical))


def context_length(options: EngineOptions, maximum: int) -> int:
    """Positions to allocate for a model whose positions end at `maximum`.

    Raises:
        InputError: more were asked for than the model has, or fewer than none.
    """
    wanted = options.context_length or min(maximum, DEFAULT_CONTEXT)
    if not 0 < wanted <= maximum:
        raise InputError(
            f"the model cannot have a context of {wanted} positions", "context_length", f"give 1 to {maximum}"
        )
    return wanted


def check_own_cache(options: EngineOptions, engine: str) -> None:
    """Raise unless the engine is left its own way to store keys and values.

    Raises:
        InputError: another way was asked for.
    """
    if options.kv_cache != "auto":
        raise InputError(
            f"{engine} cannot store keys and values as {options.kv_cache}",
            "kv_cache",
            "leave it out; GGUF bundles take it, and ONNX bundles are exported with --kv-cache int8",
        )


def check_fits(position: int, length: int, limit: int) -> None:
    """Raise unless `length` (at least 1) more positions fit behind `position`.

    Raises:
        InputError: they do not fit.
    """
    if length < 1:
        raise InputError("there is nothing to prefill", "prompt", "give at least one token")
    if position + length > limit:
        raise InputError(
            f"the prompt needs {position + length} positions, the context has {limit}",
            "prompt",
            "shorten the prompt, or load the bundle with a larger context length",
        )


def checked_features(features: Float32, batch: int, tokens: int, hidden: int) -> Float32:
    """Image embeddings as float32 `[B, N, hidden]`; the engine may have flattened the first two axes.

    Raises:
        EngineError: another number of values than expected, or one that is not finite.
    """
    if features.shape[-1] != hidden or features.size != batch * tokens * hidden:
        raise EngineError(f"the vision engine returned {features.shape}, not {(batch, tokens, hidden)}", "vision", HINT)
    result = features.reshape(batch, tokens, hidden).astype(np.float32, copy=False)
    if not np.isfinite(result).all():
        raise EngineError("the vision engine returned values that are not finite", "vision", HINT)
    return result


def checked_tiles(rows: Float32, places: Int64, tiles: int, tokens: int, hidden: int, tile_tokens: int) -> Encoded:
    """Shared tokens of `tiles` tiles, on average `tokens` each, out of `tile_tokens` each.

    Raises:
        EngineError: another number of values than expected, one that is not finite, or places that are not in order.
    """
    features = checked_features(rows, tiles, tokens, hidden)
    flat = np.asarray(places, np.int64).ravel()
    held = flat[: int((flat >= 0).sum())]
    ordered = flat.size == tiles * tokens and held.size and (held >= 0).all() and (np.diff(held) > 0).all()
    if not ordered or held[-1] >= tiles * tile_tokens:
        raise EngineError("the vision engine returned tokens that have no place in the image", "vision", HINT)
    return Encoded(features, flat)


def check_declared(shape: Sequence[object], tokens: int, hidden: int, where: str) -> None:
    """Raise unless the image embeddings `[B, N, hidden]` that a graph declares are the spec's; open sizes pass.

    Raises:
        BundleError: the graph was made for another number of image tokens, or another decoder.
    """
    declared = [size if isinstance(size, int) and size > 0 else None for size in shape[1:]]
    if len(declared) == 2 and any(
        have not in (None, need) for have, need in zip(declared, (tokens, hidden), strict=True)
    ):
        raise BundleError(
            f"the vision graph makes {declared[0]} image tokens of {declared[1]}, the spec says {tokens} of {hidden}",
            where,
            "export the bundle again",
        )


def checked_fusion(fused: Float32, rows: int, hidden: int) -> Float32:
    """Fused embeddings as float32 `[rows, hidden]`; the engine may have put an axis of one before them.

    Raises:
        EngineError: another shape than expected, or a value that is not finite.
    """
    if fused.size != rows * hidden or fused.shape[-1] != hidden:
        raise EngineError(f"the fusion engine returned {fused.shape}, not {(rows, hidden)}", "fusion", HINT)
    result = fused.reshape(rows, hidden).astype(np.float32, copy=False)
    if not np.isfinite(result).all():
        raise EngineError("the fusion engine returned values that are not finite", "fusion", HINT)
    return result


@contextlib.contextmanager
def engine_errors(what: str, where: str = "the bundle's graph") -> Iterator[None]:
    """Turn whatever a runtime raises into an EngineError with its first line."""
    try:
        yield
    except EdgeVLMError:
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise EngineError(f"{what}: {reason}", where, HINT) from error
