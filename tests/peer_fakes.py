"""Peers of the benchmark suite that take no time, for a child process."""

import os
from pathlib import Path

from edgevlm.bench.suite.peer_runs import Measured
from edgevlm.child import Json, Send


def scripted(send: Send, work: Json, log: str, name: str, positions: int) -> Json:
    """A peer that writes down when it was asked, and for prompts of which length."""
    send(os.getpid())
    with Path(log).open("a", encoding="utf-8") as file:
        file.write(f"{name} {work['positions']}\n")
    return Measured(load=[1], prefill=[1], positions=positions).model_dump()


def crashing(send: Send, work: Json) -> Json:
    """A peer whose process is killed."""
    send(os.getpid())
    os.kill(os.getpid(), 11)
    return work
