"""Rounds of one prefill and the decode steps after it, timed: what decoders of the suite are compared by.

`measure` is the entry point of a child process, for in one process the model that is loaded first, and how the system
maps the weights of the others, alone make some percent of difference. In: a bundle's folder. Out: milliseconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgevlm.bundle import open_bundle
from edgevlm.child import Send
from edgevlm.runtimes.base import EngineOptions
from edgevlm.runtimes.select import open_decoder


@dataclass(frozen=True)
class Round:
    """Milliseconds of one prefill and of the decode steps after it."""

    prefill_ms: float
    decode_ms: list[float]


def measure(
    send: Send, folder: str, threads: int, context: int, positions: int, rounds: int, steps: int
) -> dict[str, list[float]]:
    """Child entry point: milliseconds of prefill and greedy decode steps of a bundle, after one of each to warm up."""
    del send
    decoder = open_decoder(open_bundle(folder), "auto", EngineOptions(threads, context))

    def one(count: int) -> Round:
        decoder.reset()
        start = time.perf_counter()
        token = int(decoder.prefill([prompt(positions)]).argmax())
        prefill, gaps = time.perf_counter() - start, []
        for _ in range(count):
            start = time.perf_counter()
            token = int(decoder.decode(token).argmax())
            gaps.append(1e3 * (time.perf_counter() - start))
        return Round(1e3 * prefill, gaps)

    return repeat(one, rounds, steps)


def repeat(one: Callable[[int], Round], rounds: int, steps: int) -> dict[str, list[float]]:
    """All milliseconds of `rounds` rounds with `steps` steps each, after a short one."""
    one(1)
    done = [one(steps) for _ in range(rounds)]
    return {"prefill": [each.prefill_ms for each in done], "decode": [gap for each in done for gap in each.decode_ms]}


def prompt(positions: int) -> NDArray[np.int32]:
    """Ids of a prompt, the same each time."""
    return np.random.default_rng(0).integers(0, 1000, positions).astype(np.int32)
