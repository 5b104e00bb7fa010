"""What the parent tells a worker to measure, and what the worker sends back while it does.

Both are JSON across a pipe; both ends validate. Measurements are sent one by one, so whatever was done before a crash
is not lost.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field, TypeAdapter

from edgevlm.bench.report import Engine, Part, Sample, Scenario, SkippedItem
from edgevlm.runtimes.base import KvCache

Phase: TypeAlias = Literal["cold", "warmup", "steady", "cached", "repeat"]


class LatencyPlan(Part):
    """How to time answers. Steady samples go on until both `iterations` and `min_time_s` are reached.

    A batch job (`offline`) goes on by batches of `iterations` images.
    """

    iterations: int = Field(ge=1)
    min_time_s: float = Field(ge=0)
    warmup: int = Field(ge=0)
    cached: int = Field(ge=0)
    max_tokens: int = Field(ge=2)
    width: int = Field(gt=0)
    height: int = Field(gt=0)
    seed: int = Field(ge=0)
    scenario: Scenario = "single-stream"


class AccuracyPlan(Part):
    """Which items to answer; `control` asks them once more with grey noise for images.

    `data` is the folder of the task's files, `images` that of its pictures where it is another one; `data_sha256` is
    over the files that hold the questions. All are empty for generated tasks. An empty `scorer` or `template` takes the
    task's usual one.
    """

    task: str
    data: str = ""
    images: str = ""
    data_sha256: str = ""
    scorer: str = ""
    template: str = ""
    split: str
    n: int = Field(ge=1)
    seed: int = Field(ge=0)
    max_tokens: int = Field(ge=1)
    control: bool


class Job(Part):
    """One worker's work: what to open, with which engines, what to measure.

    `path` is a bundle's folder, or for a reference the checkpoint's folder, taken at its own resolution. `beside` is
    the folder of another bundle, which is timed by turns with it.
    """

    kind: Literal["bundle", "reference"]
    path: str
    beside: str = ""
    vision_engine: str = "auto"
    decoder_engine: str = "auto"
    threads: int = Field(default=0, ge=0)
    kv_cache: KvCache = "auto"
    device: str = "auto"
    latency: LatencyPlan | None = None
    accuracy: AccuracyPlan | None = None
    asked: int = Field(default=0, ge=0, description="items that are answered or skipped already, from the front")
    asked_control: int = Field(default=0, ge=0, description="the same of the control")


class Prediction(Part):
    """One answered item; a line of a predictions file.

    `answer` is the right answer that is shown, `answers` are all of them; `score` is the credit of rules that know half
    answers, of which `correct` is those of one half at least; `parsed` is what the rule read. `top_tokens` are the
    likeliest first tokens, `top_logprobs` their logarithmic probabilities.
    """

    id: str
    image_id: str
    type: str
    question: str
    answer: str
    predicted: str
    token_ids: list[int]
    correct: bool
    score: float | None = Field(default=None, ge=0, le=1)
    parsed: str = ""
    answers: list[str] = Field(default=[])
    choices: list[str] = Field(default=[])
    group: str = ""
    top_tokens: list[int] = Field(default=[])
    top_logprobs: list[float] = Field(default=[])

    @property
    def credit(self) -> float:
        """Between 0 and 1."""
        return float(self.correct) if self.score is None else self.score


class Hello(Part):
    """The first message: whose memory to watch."""

    kind: Literal["hello"] = "hello"
    pid: int
    clock_s: float = Field(description="the system's monotonic clock at the worker's start; samples count from there")


class Loaded(Part):
    """The session is ready."""

    kind: Literal["loaded"] = "loaded"
    load_ms: float
    vision_engine: Engine
    decoder_engine: Engine


class Sampled(Part):
    """One answer was timed."""

    kind: Literal["sampled"] = "sampled"
    phase: Phase
    sample: Sample
    beside: bool = Field(default=False, description="it is the other bundle's")


class Answered(Part):
    """One item was answered."""

    kind: Literal["answered"] = "answered"
    control: bool
    prediction: Prediction


class Missed(Part):
    """One item could not be asked."""

    kind: Literal["missed"] = "missed"
    control: bool
    item: SkippedItem


Message: TypeAlias = Hello | Loaded | Sampled | Answered | Missed
MESSAGES: TypeAdapter[Message] = TypeAdapter(Annotated[Message, Field(discriminator="kind")])
