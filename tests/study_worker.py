"""The worker of a study without a model: a bundle's name says how good its answers are. Imports no torch."""

from bench_fakes import Broken, FakeModel, crash

from edgevlm.bench.job import Job
from edgevlm.bench.worker import work
from edgevlm.child import Json, Send

#: Every so many-th answer of a method is wrong.
WRONG = {"uniform": 3, "random": 2, "divprune": 12, "pool": 4}


def _open(job: Job) -> FakeModel:
    name = job.path.rsplit("/", 1)[-1].split("_")[0]
    return Broken(job, crash) if name == "attention" else FakeModel(job, WRONG.get(name, 0))


def serve(send: Send, job: Json) -> None:
    """Entry point of the child."""
    work(send, Job.model_validate(job), _open)
