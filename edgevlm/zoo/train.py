"""Training of the nano models on a CPU: resumable, seeded, interruptible.

In: a model's name, where the checkpoint goes, a seed and a working folder for the training state. Out: a checkpoint
folder in the family's published layout with a model card. The stages:

1. `vision`: the encoder learns to say, for each of its tokens, what lies there (auxiliary heads, dropped later), on
   canvases fuller than any test scene. A CLIP-shaped one learns at the same time which caption belongs to which image.
   With a Q-Former behind it, a stage `queries` follows, in which each query learns to say what lies in its region.
2. `align`, where the decoder comes from another model: the projector alone learns to speak to it.
3. `answers`: the encoder rests; projector and decoder learn to answer, many questions behind each image. What a scene
   description knows is taught on the way: the projected tokens should look like the words for what they show; the nouns
   of a question should look at what they name; the end of the prompt should look at the nouns, and each of them should
   know where the things lie. Without this, relations and existence stay at chance for hours.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from edgevlm.errors import InputError
from edgevlm.longrun import cache_folder, interrupts
from edgevlm.models import load
from edgevlm.progress import Report, duration
from edgevlm.zoo.card import model_card
from edgevlm.zoo.evaluate import evaluate
from edgevlm.zoo.families import family
from edgevlm.zoo.publish import publish
from edgevlm.zoo.trainer import Settings, Trainer


@dataclass(frozen=True)
class Progress:
    """One report: `scores` are shares of right answers by type (`vision`: right cells by head) or empty."""

    stage: str
    step: int
    steps: int
    loss: float
    images_per_second: float
    eta_seconds: float
    scores: dict[str, float]


StepReport = Callable[[Progress], None]


def run(trainer: Trainer, report: StepReport, until: str | None = None) -> None:
    """Train through stage `until` (None: the last), saving to `state.pt` in the working folder, and after each stage to
    `<stage>.pt`.

    Raises:
        KeyboardInterrupt: after Ctrl-C, once the state has been saved.
    """
    settings, latest = trainer.settings, trainer.workdir / "state.pt"
    with interrupts() as interrupted:
        while True:
            steps = settings.steps(trainer.stage)
            started, first, saved = time.monotonic(), trainer.step, time.monotonic()
            while trainer.step < steps:
                begun = time.monotonic()
                loss = trainer.advance()
                trainer.seconds += time.monotonic() - begun
                if interrupted.is_set():
                    trainer.save(latest)
                    raise KeyboardInterrupt
                if time.monotonic() - saved > settings.save_every_seconds:
                    trainer.save(latest)
                    saved = time.monotonic()
                due = trainer.step % settings.validate_every == 0 or trainer.step == steps
                if due or trainer.step % 20 == 0:
                    rate = (trainer.step - first) / (time.monotonic() - started)
                    report(
                        Progress(
                            stage=trainer.stage,
                            step=trainer.step,
                            steps=steps,
                            loss=loss,
                            images_per_second=rate * settings.batch[trainer.stage],
                            eta_seconds=(steps - trainer.step) / rate,
                            scores=trainer.validate() if due else {},
                        )
                    )
            trainer.save(trainer.workdir / f"{trainer.stage}.pt")
            if trainer.stage in (until, settings.stages[-1]):
                return
            trainer.begin(settings.stages[settings.stages.index(trainer.stage) + 1])


def train_nano(
    name: str,
    out: Path,
    *,
    seed: int = 0,
    resume: bool = False,
    images: int | None = None,
    test_items: int = 1800,
    threads: int | None = None,
    workdir: Path | None = None,
    settings: Settings | None = None,
    report: Report | None = None,
) -> None:
    """Train the nano model `name` and write its checkpoint, with a model card of its scores, to the folder `out`.

    Args:
        resume: continue from the state in `workdir` (same seed, same `images`); without it, training starts afresh.
        images: images over all stages; None for the number that the settings name.
        test_items: questions of the test split for the scores in the card.
        threads: threads within one operation; None leaves torch's choice.
        workdir: where the training state is kept; None for `edgevlm/zoo/<name>` in the user's cache folder.
        settings: None for the family's own.
        report: called with (images seen, images in all, text) a few times a minute.

    Raises:
        InputError: no such model, nothing to resume, or the state belongs to another run.
        KeyboardInterrupt: after Ctrl-C, once the state has been saved.
    """
    model = family(name)
    folder = cache_folder() / "zoo" / name if workdir is None else workdir
    state = folder / "state.pt"
    if resume and not state.is_file():
        raise InputError("there is no training to resume", str(state), "train without --resume")
    if threads is not None:
        torch.set_num_threads(threads)
    settings = replace(model.settings if settings is None else settings, seed=seed)
    if images is not None:
        share = images / sum(settings.images.values())
        scaled = {stage: max(settings.batch[stage], round(count * share)) for stage, count in settings.images.items()}
        settings = replace(settings, images=scaled)
    trainer = Trainer(settings, folder)
    if resume:
        trainer.load(state)
    total = sum(settings.images.values())

    def tell(progress: Progress) -> None:
        if report is not None:
            before = sum(settings.images[s] for s in settings.stages[: settings.stages.index(progress.stage)])
            report(before + progress.step * settings.batch[progress.stage], total, describe(progress))

    run(trainer, tell)
    weights, tokenizer = trainer.average, trainer.tokenizer
    publish(out, model.write, settings.spec, weights, tokenizer, "")
    scores = evaluate(load(out), "test", test_items)
    captions = trainer.match_captions("test") if settings.spec.text else None
    card = model_card(name, model.layout, settings, trainer.seconds, scores, captions)
    publish(out, model.write, settings.spec, weights, tokenizer, card)


def describe(progress: Progress) -> str:
    """One line for people: stage, loss, speed, time left in the stage, right answers by type where just measured."""
    scores = "".join(f", {name} {100 * score:.0f}%" for name, score in progress.scores.items() if name != "centre")
    return (
        f"{progress.stage} step {progress.step}/{progress.steps}, loss {progress.loss:.2f}, "
        f"{progress.images_per_second:.1f} images/s, {duration(progress.eta_seconds)} left{scores}"
    )
