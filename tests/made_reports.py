"""Reports whose every figure is known: rows with drawn samples, of any number, without measuring anything."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from bench_bundles import settings

from edgevlm.bench.definitions import DEFINITIONS
from edgevlm.bench.job import Prediction
from edgevlm.bench.latency import Samples, summarise_latency
from edgevlm.bench.pairs import wilson
from edgevlm.bench.predictions import to_jsonl
from edgevlm.bench.report import Accuracy, Engine, Environment, File, Latency, Memory, Report, Row, Sample

MACHINE = Environment(
    started="2026-01-02T03:04:05+00:00",
    finished="2026-01-02T03:14:05+00:00",
    edgevlm="0.1.0",
    git_commit="abcdef012345",
    python="3.11.2",
    packages={"onnxruntime": "1.31.1"},
    system="Linux",
    machine="x86_64",
    cpu_model="A CPU",
    cpu_features=["avx2"],
    physical_cores=4,
    logical_cores=8,
    usable_cores=8,
    governor="performance",
    memory_bytes=16_000_000_000,
    load_average=[0.1, 0.1, 0.1],
)


def sample(rng: np.random.Generator, slower: float = 1.0, gaps: int = 8) -> Sample:
    """One answer of about 100 ms, its times a few percent apart."""
    noise = rng.lognormal(0.0, 0.03, 5)
    return Sample(
        image="0",
        prompt="p",
        preprocess_ms=5 * noise[0],
        vision_ms=60 * slower * noise[1],
        prefill_ms=30 * slower * noise[2],
        first_decode_ms=1 * noise[3],
        gaps_ms=[round(10 * slower * noise[4], 4)] * gaps,
        wall_ms=200 * slower,
        image_tokens=64,
        prompt_tokens=80,
        reused_tokens=0,
        output_sha256="0" * 64,
    )


def latency(seed: int, n: int, slower: float = 1.0, gaps: int = 8) -> Latency:
    """`n` steady answers."""
    rng = np.random.default_rng(seed)
    samples = Samples(load_ms=300)
    samples.add("cold", sample(rng, 2.0, gaps))
    for _ in range(n):
        samples.add("steady", sample(rng, slower, gaps))
    found = summarise_latency(samples, None)
    assert found is not None
    return found


def row(name: str, *, seed: int = 0, n: int = 40, slower: float = 1.0, gaps: int = 8, **changes: Any) -> Row:
    """A bundle that works."""
    file = File(
        path="onnx/decoder.onnx",
        role="decoder",
        format="onnx",
        precision="int4",
        bytes=2_000_000,
        sha256=hashlib.sha256(name.encode()).hexdigest(),
        bits_per_weight=4.5,
        parameters=3_000_000,
    )
    fields: dict[str, Any] = {
        "name": name,
        "kind": "bundle",
        "path": f"out/{name}",
        "status": "ok",
        "reason": "",
        "failed_stage": "",
        "model": "nano",
        "format": "onnx",
        "licence": "Apache-2.0",
        "total_bytes": 2_000_000,
        "bits_per_weight": 4.5,
        "parameters": 3_000_000,
        "files": [file],
        "parity": [],
        "vision_engine": Engine(name="onnxruntime 1.31.1", details={"provider": "CPUExecutionProvider"}),
        "decoder_engine": Engine(name="onnxruntime 1.31.1", details={"provider": "CPUExecutionProvider"}),
        "latency": latency(seed, n, slower, gaps) if n else None,
        "memory": Memory(
            peak_rss_bytes=200_000_000,
            peak_pss_bytes=None,
            loaded_rss_bytes=None,
            interval_ms=20,
            samples=100,
        ),
        "accuracy": None,
        "flags": [],
        "resolution": 256,
        "passes": [],
    }
    return Row.model_validate({**fields, **changes})


def predictions(right: Sequence[bool]) -> list[Prediction]:
    """Answers, two questions an image."""
    return [
        Prediction(
            id=f"{index}",
            image_id=f"{index // 2}",
            type="colour",
            question="q",
            answer="red",
            predicted="red" if correct else "blue",
            token_ids=[int(correct)],
            correct=correct,
        )
        for index, correct in enumerate(right)
    ]


def scored(folder: Path, right: Sequence[bool], *, task: str = "scenes") -> Accuracy:
    """The accuracy of such answers, which are written beside the report in `folder`."""
    text = to_jsonl(predictions(right))
    (folder / "answers.jsonl").write_text(text, encoding="utf-8")
    return accuracy(sum(right), len(right), hashlib.sha256(text.encode()).hexdigest(), task=task)


def accuracy(correct: int, n: int, sha256: str = "0" * 64, *, task: str = "scenes") -> Accuracy:
    """So many right of so many."""
    return Accuracy(
        task=task,
        scorer="exact",
        n=n,
        images=n // 2,
        overall=wilson(correct, n),
        control=None,
        types=[],
        paired=None,
        unpaired_reason="it is the baseline",
        predictions_file="answers.jsonl",
        predictions_sha256=sha256,
    )


def report(*rows: Row, environment: Environment = MACHINE, **changes: Any) -> Report:
    """A report of these rows."""
    return Report(
        schema_version=1,
        environment=environment,
        settings=settings(**changes),
        rows=list(rows),
        interrupted=False,
        definitions=DEFINITIONS,
    )


def save(folder: Path, made: Report) -> Path:
    """Write report.json into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(made.model_dump_json(), encoding="utf-8")
    return folder / "report.json"
