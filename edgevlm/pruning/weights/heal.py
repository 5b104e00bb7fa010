"""The pass `heal`: a pruned model is trained for a short while to answer like the original on calibration data.

In: the pruned model, the original and samples. Out: the pruned model with other weights in its decoder layers; shapes
and zeros stay. What is minimised is the KL divergence of the next tokens' distributions at the answers from the
original's, plus the squared distance of hidden states, relative to their size: at the answers behind the last norm, and
at all positions behind every layer in front of which layers are missing. (Nobody reads what the last layer makes of the
others.) Image embeddings, token embeddings, last norm and head rest. A run is a function of the seed; its state is kept
in the user's cache folder, so that a run that was stopped goes on where it was.
"""

from __future__ import annotations

import copy
import hashlib
import math
import pickle
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn import functional as F

from edgevlm import reference
from edgevlm.atomic import atomic_file
from edgevlm.calibration import Calibration
from edgevlm.calibration.activations import Activations, embed
from edgevlm.calibration.answers import answer_rows
from edgevlm.calibration.scratch import Scratch
from edgevlm.calibration.sources import open_calibration
from edgevlm.longrun import cache_folder, interrupts
from edgevlm.models.decoder import rotary_for
from edgevlm.models.footprint import release
from edgevlm.models.rebuild import with_decoder, with_note
from edgevlm.models.vlm import VlmModel
from edgevlm.passes import Pass, PassContext, Stage
from edgevlm.progress import Report, part_of
from edgevlm.pruning.weights.packs import groups_of, pack
from edgevlm.pruning.weights.student import Student
from edgevlm.spec import ModelSpec

_SECONDS_BETWEEN_SAVES = 120.0
_WARM_STEPS = 0.05
_LAST_RATE = 0.02


class HealConfig(BaseModel):
    """How the model is trained.

    Attributes:
        steps: of the optimiser (AdamW, cosine schedule).
        batch: images a step, each with all questions that stand next to one another in the data.
        rate: the highest learning rate.
        rank: train LoRA factors of this rank instead of all weights of the decoder's layers: less memory, less change.
        n: samples from the same source as calibration's; None takes those of calibration.
        hidden_weight: of the hidden states' distance against the KL divergence.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = Field(default=600, ge=1)
    batch: int = Field(default=8, ge=1)
    rate: float = Field(default=5e-4, gt=0, le=1)
    rank: int | None = Field(default=None, ge=1)
    n: int | None = Field(default=None, ge=1)
    hidden_weight: float = Field(default=1.0, ge=0)


class Heal(Pass[HealConfig]):
    """Distillation from the original."""

    name, stage = "heal", Stage.HEALING
    page = "docs/weight-pruning.md"
    Config = HealConfig
    needs_calibration = True

    def applies_to(self, spec: ModelSpec) -> str | None:
        """Why this model cannot take the pass, or None."""
        drop = spec.decoder.token_drop
        return None if drop is None else f"{drop.name} drops image tokens inside the decoder, which is not trained"

    def run(self, model: VlmModel, context: PassContext) -> VlmModel:
        """The healed model.

        Raises:
            KeyboardInterrupt: after Ctrl-C, once the state has been saved.
        """
        assert context.calibration is not None
        calibration = self._samples(context.calibration)
        scratch = Scratch(calibration.memory)
        activations = embed(context.original, calibration, scratch, part_of(context.progress, 0, 0.1))
        lesson = teach(context.original, model, activations, scratch, part_of(context.progress, 0.1, 0.15))
        trainer = Trainer(self.config, self.seed, model, lesson, calibration.memory)
        loss = trainer.run(part_of(context.progress, 0.15, 1))
        stored = model.decoder.state_dict()
        weights = {n: scratch.keep(value, stored[n].dtype) for n, value in trainer.student.weights().items()}
        healed = with_decoder(model, model.spec.decoder, weights)
        how = "all weights" if self.config.rank is None else f"LoRA factors of rank {self.config.rank}"
        seen = f"{self.config.steps} steps of {self.config.batch} images among {calibration.count} samples"
        return with_note(healed, f"heal: {how} of the decoder's layers, {seen}, KL divergence {loss:.4f} at the end")

    def _samples(self, given: Calibration) -> Calibration:
        if self.config.n is None or not given.source:
            return given
        return open_calibration(given.source, self.config.n, seed=self.seed, memory=given.memory)


@dataclass(frozen=True)
class Lesson:
    """What the student is shown and what it should make of it.

    Attributes:
        start: states in front of the first layer.
        anchors: layers of the student whose outputs have a target, those behind a gap.
        targets: for each anchor and sample the original's states `[S, H]`, in bfloat16.
        answers: for each sample the original's states `[P, H]` behind the last norm, at its answer rows.
    """

    start: Activations
    anchors: tuple[int, ...]
    targets: dict[int, list[Tensor]]
    answers: list[Tensor]


@torch.no_grad()
def teach(original: VlmModel, pruned: VlmModel, activations: Activations, scratch: Scratch, progress: Report) -> Lesson:
    """The original's states that the pruned model should reach; `activations` stay in front of the first layer."""
    places = [original.decoder.origins.index(layer) for layer in pruned.decoder.origins]
    # A layer whose predecessor is missing has to do its work as well; the last one is judged by its answers.
    goals = {place: i for i, place in enumerate(places[:-1]) if place != (places[i - 1] + 1 if i else 0)}
    nothing = torch.empty(0)
    targets = {i: [nothing] * len(activations) for i in goals.values()}
    answers = [nothing] * len(activations)
    groups, layers = groups_of(activations), original.decoder.layers
    rooms = [scratch.keep(pack(activations, [group]).fill(activations.states)) for group in groups]
    norm = copy.deepcopy(original.decoder.norm).float()
    for index, stored in enumerate(layers):
        layer = copy.deepcopy(stored).float()
        for done, (group, states) in enumerate(zip(groups, rooms, strict=True)):
            progress(index * len(groups) + done, len(layers) * len(groups), "what the original makes of them")
            packed = pack(activations, [group])
            states.copy_(layer(states, rotary_for(activations.spec, packed.positions), None, packed.mask)[0])
            for sample, columns in zip(packed.samples, packed.places, strict=True):
                if index in goals:
                    targets[goals[index]][sample] = scratch.keep(states[0, columns], torch.bfloat16)
                if index == len(layers) - 1:
                    answers[sample] = norm(states[0, columns[answer_rows(activations.sequences[sample])]])
        release(stored)
    return Lesson(activations, tuple(sorted(targets)), targets, answers)


class Trainer:
    """One run of the training."""

    def __init__(self, config: HealConfig, seed: int, model: VlmModel, lesson: Lesson, memory: int) -> None:
        self.config, self.seed, self.lesson, self.model = config, seed, lesson, model
        self._groups = groups_of(lesson.start)
        longest = max(sum(len(lesson.start.states[sample]) for sample in group) for group in self._groups)
        spec = model.spec.decoder
        # About twenty arrays of a layer's width are kept for the way back.
        kept = 80 * config.batch * longest * spec.hidden_size * spec.num_hidden_layers
        self.student = Student(model.decoder, config.rank, seed, save_memory=kept > memory)
        self.optimizer = torch.optim.AdamW(self.student.trained(), lr=0.0, betas=(0.9, 0.98), weight_decay=0.0)
        self._norm = copy.deepcopy(model.decoder.norm).float()
        self.step = 0
        self._recent: list[float] = []

    def run(self, progress: Report) -> float:
        """All steps; the mean KL divergence (nats) of the last tenth of them."""
        path, saved = self.state_file(), time.monotonic()
        if path.is_file():
            self.load(path)
        with interrupts() as interrupted:
            while self.step < self.config.steps:
                self._recent.append(self.advance())
                self._recent = self._recent[-max(1, self.config.steps // 10) :]
                shown = f"step {self.step} of {self.config.steps}, KL {np.mean(self._recent):.4f}"
                progress(self.step, self.config.steps, shown)
                if interrupted.is_set() or time.monotonic() - saved > _SECONDS_BETWEEN_SAVES:
                    self.save(path)
                    saved = time.monotonic()
                if interrupted.is_set():
                    raise KeyboardInterrupt
        path.unlink(missing_ok=True)
        return float(np.mean(self._recent))

    def advance(self) -> float:
        """One step; returns its KL divergence."""
        warm = min(1.0, (self.step + 1) / max(1.0, _WARM_STEPS * self.config.steps))
        cosine = 0.5 + 0.5 * math.cos(math.pi * self.step / self.config.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.rate * warm * (_LAST_RATE + (1 - _LAST_RATE) * cosine)
        divergence, distance = self._losses(self._batch())
        loss = divergence + self.config.hidden_weight * distance
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.student.trained(), 1.0)
        self.optimizer.step()
        self.student.after_step()
        self.step += 1
        return float(divergence.detach())

    def _batch(self) -> list[list[int]]:
        """Groups of samples of this step: each epoch is a permutation of all."""
        count = len(self._groups)
        batch = min(self.config.batch, count)
        chosen = []
        for position in range(self.step * batch, (self.step + 1) * batch):
            epoch, place = divmod(position, count)
            chosen.append(self._groups[np.random.default_rng([self.seed, epoch]).permutation(count)[place]])
        return chosen

    def _losses(self, groups: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """KL divergence at the answers, and the distance of the states."""
        lesson, packed = self.lesson, pack(self.lesson.start, groups)
        rotary = rotary_for(lesson.start.spec, packed.positions)
        outputs = self.student(packed.fill(lesson.start.states), rotary, packed.mask)
        valid, distances = packed.valid, []
        for anchor in lesson.anchors:
            distances.append(_distance(outputs[anchor][valid], packed.fill(lesson.targets[anchor])[valid]))
        where = zip(packed.samples, packed.rows, packed.places, strict=True)
        rows = [outputs[-1][row, places[answer_rows(lesson.start.sequences[i])]] for i, row, places in where]
        found, expected = self._norm(torch.cat(rows)), torch.cat([lesson.answers[i] for i in packed.samples])
        distances.append(_distance(found, expected))
        said, meant = (self._head(normed).log_softmax(1) for normed in (found, expected))
        divergence = F.kl_div(said, meant, reduction="batchmean", log_target=True)
        return divergence, torch.stack(distances).mean()

    def _head(self, normed: Tensor) -> Tensor:
        """Logits of the tokens that the pruned model has: passes take rows of the head away and change none."""
        return reference.head_logits(self.model.decoder, normed)

    def save(self, path: Path) -> None:
        """Write the state atomically."""
        trained = {n: p for n, p in self.student.named_parameters() if p.requires_grad}
        state = {
            "step": self.step,
            "weights": trained,
            "optimizer": self.optimizer.state_dict(),
            "recent": self._recent,
        }
        with atomic_file(path) as temporary, temporary.open("wb") as file:
            torch.save(state, file)

    def load(self, path: Path) -> None:
        """Go on from a state of the same run; one that cannot be read is left aside."""
        try:
            state: dict[str, Any] = torch.load(path, weights_only=True)
            self.student.load_state_dict(state["weights"], strict=False)
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self._recent = int(state["step"]), [float(value) for value in state["recent"]]
        except (OSError, RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError):
            path.unlink(missing_ok=True)

    def state_file(self) -> Path:
        """Where the state of this run is kept: its name tells settings, weights and data."""
        digest = hashlib.sha256(f"{self.config!r} {self.seed} {self.model.spec.decoder!r}".encode())
        for value in (*self.model.decoder.state_dict().values(), *self.lesson.start.states, *self.lesson.answers):
            digest.update(f"{float(value.sum(dtype=torch.float64))} ".encode())
        return cache_folder() / "heal" / f"{digest.hexdigest()[:32]}.pt"


def _distance(found: Tensor, wanted: Tensor) -> Tensor:
    """Mean over rows `[R, H]` of the squared distance, relative to the wanted row's size."""
    return ((found - wanted).square().sum(1) / wanted.square().sum(1)).mean()
