"""Hashes over all that a measurement depends on, so that it is only taken for its own."""

from __future__ import annotations

import hashlib
import json

from edgevlm.bench.baseline import Reference
from edgevlm.bench.plan import Work
from edgevlm.bench.report import Environment


def answers_key(work: Work, environment: Environment) -> str:
    """Of answers: the weights, the items, the engines and the code."""
    versions = [environment.edgevlm, environment.git_commit or "", environment.cpu_model]
    packages = [f"{name} {version}" for name, version in sorted(environment.packages.items())]
    return _hash([*_content(work), _job(work, {"path", "beside", "latency"}), *versions, *packages])


def row_key(work: Work) -> str:
    """Of a row: the weights, what is measured, and what it is compared with."""
    return _hash([*_content(work), work.name, work.baseline, _job(work, {"path", "beside"})])


def _content(work: Work) -> list[str]:
    if isinstance(work.source, Reference):
        return [work.source.content]
    return [f"{entry.path} {entry.sha256}" for entry in work.source.manifest.artifacts]


def _job(work: Work, left_out: set[str]) -> str:
    return json.dumps(work.job.model_dump(mode="json", exclude=left_out), sort_keys=True)


def _hash(lines: list[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
