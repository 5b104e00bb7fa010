"""The report: one frozen model, one JSON schema; HTML, Markdown and the console are renderings of it.

Times are milliseconds, sizes bytes, shares 0 to 1, instants ISO 8601 in UTC. Whatever was not measured is null, never
zero. `python -m edgevlm.bench.report` prints the JSON Schema (2020-12) that stands in report.schema.json.
"""

from __future__ import annotations

import json
from typing import Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from edgevlm.bench.metered import Energy, Heat, Sensor
from edgevlm.bench.pairs import Interval, Proportion
from edgevlm.bench.stats import Summary
from edgevlm.runtimes.base import KvCache

SCHEMA_VERSION = 1
Verdict: TypeAlias = Literal["non-inferior", "worse", "undecided"]
Scenario: TypeAlias = Literal["single-stream", "offline"]
SCHEMA_ID = "urn:edgevlm:report:1"


class Part(BaseModel):
    """Strict and immutable, like every part of a report."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Sample(Part):
    """One answer, timed. TTFT = preprocess + vision + fusion + prefill + first decode."""

    image: str = Field(description="name of the input image: seed and index")
    prompt: str
    preprocess_ms: float = Field(ge=0, description="image bytes to pixels and prompt to tokens")
    vision_ms: float = Field(ge=0, description="pixels to image embeddings, connector included")
    fusion_ms: float | None = Field(
        default=None, ge=0, description="image and prompt through the fusion; null for models without one"
    )
    prefill_ms: float = Field(ge=0, description="prompt pass of the decoder, up to its logits")
    first_decode_ms: float = Field(ge=0, description="logits to the first text: sampling and detokenisation")
    gaps_ms: list[float] = Field(description="time between consecutive tokens after the first")
    wall_ms: float = Field(ge=0, description="the whole call, seen from outside the session")
    at_s: float | None = Field(default=None, description="when the call began, in seconds since the worker's start")
    image_tokens: int = Field(ge=0)
    prompt_tokens: int = Field(ge=0, description="positions of the prompt, image tokens included")
    reused_tokens: int = Field(ge=0, description="prompt positions that came from a cache")
    output_sha256: str = Field(description="of the generated token ids: greedy answers repeat it for the same input")

    @property
    def ttft_ms(self) -> float:
        """Image bytes to first text."""
        return self.preprocess_ms + self.vision_ms + (self.fusion_ms or 0) + self.prefill_ms + self.first_decode_ms

    @property
    def tpot_ms(self) -> float | None:
        """Mean time per output token after the first; None for a one-token answer."""
        return sum(self.gaps_ms) / len(self.gaps_ms) if self.gaps_ms else None


class Stages(Part):
    """The parts of TTFT over the steady samples."""

    preprocess_ms: Summary
    vision_ms: Summary
    fusion_ms: Summary | None = Field(default=None, description="null for models without a fusion")
    prefill_ms: Summary
    first_decode_ms: Summary


class Overhead(Part):
    """What the bench itself took of the steady phase."""

    between: float = Field(description="share of its time that passed between answers, such as making the next image")
    watching: float | None = Field(
        description="CPU seconds of the process that samples memory, per second; null where the phase was too short"
    )


class Latency(Part):
    """Latency of one bundle, with the raw samples."""

    load_ms: float = Field(description="start of loading to ready for the first request")
    ttft_cold_ms: float = Field(description="first answer after loading, nothing warmed up")
    ttft_steady_ms: Summary = Field(description="after warm-up, another image and prompt each time")
    ttft_cached_ms: Summary | None = Field(description="the same image and prompt again, caches on")
    stages: Stages
    e2e_ms: Summary = Field(description="image bytes to last token, steady")
    tpot_ms: Summary | None = Field(description="time per output token, one value per steady answer")
    decode_tokens_per_second: float | None = Field(description="1000 / median TPOT; TTFT does not enter")
    image_tokens: int
    prompt_tokens: int = Field(description="median over the steady samples, image tokens included")
    other_cpu_share: float | None = Field(
        description="share of the machine's CPU time that other processes used during the steady samples"
    )
    steady_s: float | None = Field(default=None, description="from the first steady answer's start to the last's end")
    overhead: Overhead | None = Field(default=None, description="what measuring itself took; null where not known")
    cold: Sample
    warmup: list[Sample]
    steady: list[Sample]
    cached: list[Sample]
    repeat: Sample | None = Field(description="the first steady input once more, at the end, caches off")


class Throughput(Part):
    """What a batch job gets done: its images are there from the beginning, and answered one after the other."""

    answers: int
    tokens: int = Field(description="of all answers")
    seconds: float = Field(description="from the first answer's start to the last one's end, batch by batch")
    images_per_second: float = Field(description="answers / seconds")
    tokens_per_second: float = Field(description="tokens / seconds; the time until the first token counts")
    batch: int = Field(description="images of a batch")
    batches: Summary = Field(description="images per second, one value a batch")


class Memory(Part):
    """Memory of the worker and its children, sampled from outside."""

    peak_rss_bytes: int = Field(description="peak of the resident set of the whole process tree")
    peak_pss_bytes: int | None = Field(description="the same with shared pages divided among their users; Linux only")
    loaded_rss_bytes: int | None = Field(description="resident set when loading had finished")
    interval_ms: float = Field(description="time between two samples of the resident set")
    samples: int
    steady_rss_bytes: list[int] = Field(default=[], description="resident set after each steady answer")
    peak_gpu_bytes: int | None = Field(
        default=None, description="GPU memory of the process tree; null where no driver tells"
    )
    peak_gpu_device_bytes: int | None = Field(
        default=None, description="most in use on the GPUs by anyone, less the least; null where no driver tells"
    )
    peak_unified_bytes: int | None = Field(
        default=None,
        description="most memory in use by the whole system, less the least, where CPU and GPU share it; else null",
    )


class Figure(Part):
    """A figure that a benchmark's papers give besides accuracy, such as F1 or a sum over sub-tasks."""

    name: str
    value: float | None = Field(description="null where it is not defined, such as the precision of no yes at all")
    out_of: float = Field(default=1, description="the highest that can be reached")


class SkippedItem(Part):
    """An item that was not asked, and why."""

    id: str
    reason: str


class FirstToken(Part):
    """How far the distribution of the first answer token lies from the baseline's, the image in the prompt."""

    n: int
    agreement: float = Field(description="share of items whose likeliest first token is the same")
    kl_mean: float = Field(
        description="mean Kullback-Leibler divergence from the baseline, in nats, over the tokens that both rank "
        "among their first, the others as one: a lower bound of that over all tokens"
    )
    kl_p99: float = Field(description="99th percentile of the same; with fewer than 100 items near the largest")


class TypeScore(Part):
    """Accuracy on one type of question."""

    type: str
    chance: float = Field(description="accuracy of the best guess that never looks at the image")
    accuracy: Proportion
    baseline: Proportion | None
    control: Proportion | None = Field(description="accuracy with the image replaced by grey noise")


class Paired(Part):
    """The same items answered by the uncompressed model."""

    baseline: str = Field(description="name of the row or model compared with")
    n: int
    accuracy: Proportion
    delta: Interval = Field(description="accuracy less the baseline's; 95% bootstrap over images")
    lost: int = Field(description="baseline right, this one wrong")
    gained: int = Field(description="baseline wrong, this one right")
    answers_changed: int = Field(description="items whose answer differs at all, right or wrong")
    tokens_identical: int = Field(description="items with the very same token ids")
    mcnemar_p: float
    mcnemar_method: Literal["exact", "mid-p"]
    margin: float = Field(description="drop that counts as harmless, chosen before measuring")
    verdict: Verdict
    smallest_detectable_drop: float | None = Field(
        description="drop that these n items show with 80% power at the observed share of flips, 2% at least; or null"
    )
    first_token: FirstToken | None = Field(default=None, description="null where the answers hold no probabilities")


class Accuracy(Part):
    """Accuracy on one task."""

    task: str
    scorer: str = Field(description="the rule that calls an answer right")
    n: int
    images: int
    overall: Proportion
    control: Proportion | None = Field(description="accuracy with the image replaced by grey noise")
    types: list[TypeScore]
    paired: Paired | None
    unpaired_reason: str = Field(description="why there is no paired comparison; empty if there is")
    predictions_file: str = Field(description="JSONL beside the report")
    predictions_sha256: str
    split: str = Field(default="", description="of the task")
    template: str = Field(default="", description="name of the prompt's wording, and the wording")
    data_sha256: str = Field(
        default="", description="over the files that hold the questions; empty for generated tasks"
    )
    total: int | None = Field(default=None, description="items of the whole split; null where it has no end")
    figures: list[Figure] = Field(default=[], description="what the benchmark's papers give besides accuracy")
    skipped: int = Field(default=0, description="items that were not asked")
    skipped_items: list[SkippedItem] = Field(default=[], description="the first hundred of these, with the reason")
    submission_file: str = Field(default="", description="for a judge or a server, beside the report; empty for none")


class Flag(Part):
    """Something a reader must know before trusting a figure."""

    code: Literal[
        "cache-suspected",
        "noisy",
        "non-deterministic",
        "reused-prompt",
        "few-tokens",
        "contended",
        "drift",
        "memory-growth",
        "no-method-cost",
        "not-timed",
        "throttled",
        "sensor-lost",
        "short-energy",
    ]
    text: str


class File(Part):
    """One file of a bundle."""

    path: str
    role: str
    format: str
    precision: str
    bytes: int
    sha256: str
    bits_per_weight: float | None
    parameters: int


class Parity(Part):
    """One figure that the export verified."""

    stage: str
    metric: str
    value: float
    threshold: float
    passed: bool


class Engine(Part):
    """What a runtime says of itself: version, build flags, settings."""

    name: str
    details: dict[str, str]


class Beside(Part):
    """Another bundle that answered the same questions by turns in the same process, so that ratios compare."""

    vision_ms: Summary
    prefill_ms: Summary
    ttft_ms: Summary


class Pruning(Part):
    """Which visual tokens a cell of a study keeps, what choosing them costs, and what plain choices make of as many."""

    method: str
    options: dict[str, str] = Field(description="those that were given; the others have their defaults")
    keep_percent: list[float] = Field(
        description="what was asked for and became this count; none where the method chose it"
    )
    tokens: int = Field(ge=1, description="kept of an image, or of each of its tiles; in the end, inside a decoder")
    layer_tokens: list[int] | None = Field(
        default=None,
        description="an image's tokens in each layer of a decoder that drops some on the way; else null",
    )
    export: list[str] = Field(description="the command that writes the same bundle")
    method_ms: Summary | None = Field(
        description="what the method adds: the vision graph with it less the one without, by turns on the same images "
        "in one process; for a method inside the decoder its prefill less the unpruned one, likewise; null where "
        "neither differs, or was not measured"
    )
    beside: Beside | None = Field(
        default=None, description="the unpruned bundle, timed by turns with this one; null where that was not done"
    )
    against: list[Paired] = Field(description="paired with the study's cells of `uniform` and `random` for one share")


class Forecast(Part):
    """What `edgevlm estimate` says of a row: from numbers of the model and the device, not from measuring it."""

    target: str = Field(description="name of the device's profile")
    vision_ms: float | None
    prefill_ms: float | None
    tokens_per_second: float | None = Field(description="of decoding")
    peak_bytes: int | None = Field(description="weights, cache, activations, and the runtime's own")
    reason: str = Field(description="why there is none; empty if there is")


class Row(Part):
    """One measured thing: a bundle, or the uncompressed reference."""

    name: str
    kind: Literal["bundle", "reference"]
    path: str
    status: Literal["ok", "failed", "skipped"]
    reason: str = Field(description="why it failed or was skipped; empty if ok")
    failed_stage: str = Field(description="load, latency, accuracy ...; empty if ok")
    model: str
    format: str
    licence: str
    total_bytes: int | None
    bits_per_weight: float | None = Field(description="stored weight bits over parameters, whole bundle")
    parameters: int | None
    files: list[File]
    parity: list[Parity]
    vision_engine: Engine | None
    decoder_engine: Engine | None
    latency: Latency | None
    memory: Memory | None
    energy: Energy | None = Field(default=None, description="null where nothing was timed, and in a study")
    heat: Heat | None = Field(default=None, description="null likewise, and where no sensor shows any")
    accuracy: Accuracy | None
    forecast: Forecast | None = Field(default=None, description="null where none was asked for")
    flags: list[Flag]
    notes: list[str] = Field(
        default=[], description="what the bundle says of itself to people, such as choices it was made by"
    )
    pruning: Pruning | None = Field(default=None, description="for the cells of a study; null for its unpruned model")
    resolution: int | None = Field(
        default=None,
        description="pixels along one side of the vision input, or of a tile; of the timed images where these keep "
        "their shape and a matrix asks for some",
    )
    threads: int | None = Field(
        default=None, description="that were asked for in a matrix; null: those of the settings"
    )
    started: str = Field(default="", description="when measuring it began; empty if it did not")
    throughput: Throughput | None = Field(default=None, description="of a batch job; null in other scenarios")
    passes: list[str] | None = Field(
        default=None, description="what the recipe did to the model before export, pass by pass; null where not known"
    )


class Settings(Part):
    """What was asked for."""

    command_line: list[str]
    iterations: int
    min_time_s: float
    warmup: int
    cached: int
    max_tokens: int
    image_width: int
    image_height: int
    seed: int
    task: str | None = Field(description="accuracy task; null for speed and memory only")
    items: int = Field(description="items that were asked for; 0: all, or 500 of a task without end")
    split: str = Field(description="of the task; empty: its usual one")
    control: bool
    margin: float
    threads: int = Field(description="0: the engine's own choice; the first of `thread_counts` where there are some")
    thread_counts: list[int] = Field(default=[], description="of a matrix; empty: `threads` alone")
    resolutions: list[int] = Field(default=[], description="of a matrix, pixels a side; empty: as the bundles are")
    scenario: Scenario = Field(
        default="single-stream", description="`single-stream`: an app's next question; `offline`: a batch job"
    )
    vision_engine: str
    decoder_engine: str
    data: str = Field(default="", description="folder of the task's files; empty for generated tasks")
    images: str = Field(default="", description="folder of its pictures, where that is another one")
    scorer: str = Field(default="", description="id of the rule that was asked for; empty for the task's usual one")
    template: str = Field(default="", description="name of the prompt's wording that was asked for; empty: the usual")
    kv_cache: KvCache = Field(default="auto", description="storage of keys and values that was asked of the engine")
    device: str = Field(default="auto", description="processor that was asked of the engines, such as `cuda:0`")
    silence_s: float = Field(description="a worker silent for longer counts as hung")
    idle_s: float = Field(default=0.0, description="how long idle power was measured, where there is a sensor of power")


class Environment(Part):
    """Where it ran; enough to repeat it."""

    started: str
    finished: str
    edgevlm: str
    git_commit: str | None
    python: str
    packages: dict[str, str]
    system: str
    machine: str
    cpu_model: str
    cpu_features: list[str]
    physical_cores: int | None
    logical_cores: int | None
    usable_cores: int | None = Field(description="cores this process may run on")
    governor: str | None
    power_mode: str | None = Field(default=None, description="of a Jetson: nvpmodel's name and number")
    memory_bytes: int
    load_average: list[float] | None = Field(description="1, 5 and 15 minutes, before the first bundle")


class Study(Part):
    """What a study varied. Its first row is the unpruned model, each other row a cell of the grid."""

    kind: Literal["prune"]
    model: str
    unpruned: str = Field(description="name of the row that every other one is paired with")
    image_tokens: int = Field(ge=1, description="of an image, or of each of its tiles, unpruned")
    methods: list[str]
    keep_percent: list[float] = Field(description="of the unpruned model's image tokens")
    front_tokens: list[str] = Field(description="rows on the Pareto front of accuracy against tokens, fewest first")
    front_ttft: list[str] = Field(description="rows on the Pareto front of accuracy against median TTFT, fastest first")


class Report(Part):
    """The whole report."""

    schema_version: Literal[1]
    environment: Environment
    settings: Settings
    rows: list[Row]
    sensors: list[Sensor] = Field(default=[], description="of power, heat and clocks; empty where none were looked for")
    interrupted: bool
    definitions: dict[str, str] = Field(description="how each figure is defined, printed beside the numbers")
    study: Study | None = Field(default=None, description="for the report of a study; null for a sweep over bundles")


def report_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of `report.json`."""
    schema = Report.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": SCHEMA_ID, **schema}


if __name__ == "__main__":
    print(json.dumps(report_schema(), indent=2))
