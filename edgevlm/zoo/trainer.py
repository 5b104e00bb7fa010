"""The state of one training run of `nano-fastvlm` and what one step of it does.

In: settings and a working folder. Out: trained and averaged weights, stage by stage (`edgevlm.zoo.train` says what the
stages are for). A step is a function of (seed, stage, step) and the weights, so a run that was stopped and resumed ends
where an uninterrupted one does.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from edgevlm.atomic import atomic_file
from edgevlm.errors import InputError
from edgevlm.zoo.batches import (
    DENSE_STREAM,
    IGNORE,
    SCENE_STREAM,
    VALIDATION_STREAM,
    Packed,
    cell_targets,
    pack,
    pixels,
    pointers,
    questions_for,
    stream_seed,
    train_scene,
)
from edgevlm.zoo.drawing import Pixels, Scene, render
from edgevlm.zoo.losses import answer_loss, cell_loss, cell_scores, exact_matches, pointer_loss, token_loss
from edgevlm.zoo.nano import NANO, NanoFastVLM, NanoSpec, initialise
from edgevlm.zoo.scenes import compose, scene_rng
from edgevlm.zoo.tokenizer import build_tokenizer

STAGES = ("vision", "answers")
_EMA_DECAY = 0.995
_TOKEN_WEIGHT = 0.3
_POINTER_WEIGHT = 0.3


@dataclass(frozen=True)
class Settings:
    """What a training run is made of. Images are counted per stage; `pool` scenes are encoded once for `answers`."""

    seed: int = 0
    images: dict[str, int] = field(default_factory=lambda: {"vision": 14_000, "answers": 24_000})
    batch: dict[str, int] = field(default_factory=lambda: {"vision": 8, "answers": 8})
    peak_rate: dict[str, float] = field(default_factory=lambda: {"vision": 2e-3, "answers": 1e-3})
    pool: int = 8_000
    validation_scenes: int = 64
    validate_every: int = 150
    save_every_seconds: float = 180.0
    spec: NanoSpec = NANO

    def steps(self, stage: str) -> int:
        return self.images[stage] // self.batch[stage]


class Trainer:
    """The state of one run: model, averaged weights, optimiser, stage and step."""

    def __init__(self, settings: Settings, workdir: Path) -> None:
        self.settings = settings
        self.workdir = workdir
        self.tokenizer: Tokenizer = build_tokenizer(settings.spec.decoder.vocab_size)
        self.model = NanoFastVLM(settings.spec)
        initialise(self.model, settings.seed)
        self.stage, self.step = STAGES[0], 0
        self.seconds = 0.0
        self.average: dict[str, Tensor] = {}
        self.optimizer = self._new_optimizer()
        self._features: dict[int, Tensor] = {}

    # -- state -----------------------------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """Write the whole state atomically."""
        state = {
            "seed": self.settings.seed,
            "stage": self.stage,
            "step": self.step,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
        }
        with atomic_file(path) as temporary, temporary.open("wb") as file:
            torch.save(state, file)

    def load(self, path: Path) -> None:
        """Continue from a saved state.

        Raises:
            InputError: the file is not a state of this model and seed.
        """
        try:
            state: dict[str, Any] = torch.load(path, weights_only=True)
            if state["seed"] != self.settings.seed:
                raise ValueError(f"it was started with seed {state['seed']}")
            self.model.load_state_dict(state["model"])
            self.stage, self.step, self.average = state["stage"], state["step"], state["average"]
            self.seconds = state["seconds"]
            self.optimizer = self._new_optimizer()
            self.optimizer.load_state_dict(state["optimizer"])
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            first_line = str(error).splitlines()[0]
            raise InputError(
                f"the training state does not fit: {first_line}", str(path), "train without --resume"
            ) from error

    def begin(self, stage: str) -> None:
        """Start `stage` from the averaged weights of the one before."""
        self.model.load_state_dict(self.average)
        self.stage, self.step, self.average = stage, 0, {}
        self.optimizer = self._new_optimizer()

    def _trained(self) -> dict[str, torch.nn.Parameter]:
        parts = {
            "vision": ("vision.", "heads."),
            "answers": ("projector.", "decoder.", "place.", "seen_place."),
        }[self.stage]
        return {n: p for n, p in self.model.named_parameters() if n.startswith(parts)}

    def _new_optimizer(self) -> torch.optim.AdamW:
        matrices: list[torch.nn.Parameter] = []
        vectors: list[torch.nn.Parameter] = []
        for name, parameter in self._trained().items():
            is_matrix = parameter.squeeze().dim() >= 2 and "embed_tokens" not in name
            (matrices if is_matrix else vectors).append(parameter)
        groups = [{"params": matrices, "weight_decay": 0.02}, {"params": vectors, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98))

    # -- one step --------------------------------------------------------------------------------------------------

    def advance(self) -> float:
        """One optimisation step of the current stage; returns its loss."""
        settings, stage = self.settings, self.stage
        steps = settings.steps(stage)
        warm = min(1.0, (self.step + 1) / max(1, min(100, steps // 10)))
        rate = settings.peak_rate[stage] * warm * (0.02 + 0.98 * (0.5 + 0.5 * math.cos(math.pi * self.step / steps)))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = {"vision": self._vision_loss, "answers": self._answers_loss}[stage]()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        trained = self._trained()
        torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)
        self.optimizer.step()
        self._update_average()
        self.step += 1
        return float(loss.detach())

    @torch.no_grad()
    def _update_average(self) -> None:
        """Exponential moving average of all weights; BatchNorm's running values are averages already."""
        decay = min(_EMA_DECAY, (self.step + 1) / (self.step + 10))
        for name, value in self.model.state_dict().items():
            if name in self.average and value.is_floating_point():
                self.average[name].lerp_(value, 1 - decay)
            else:
                self.average[name] = value.clone()

    def _scenes(self, stream: int, count: int) -> list[tuple[Scene, Pixels]]:
        size, first = self.settings.spec.image_size, self.step * count
        return [train_scene(stream, self.settings.seed, first + i, size) for i in range(count)]

    def _vision_loss(self) -> Tensor:
        batch = self.settings.batch["vision"]
        made = self._scenes(DENSE_STREAM, batch - batch // 4) + self._scenes(SCENE_STREAM, batch // 4)
        targets = cell_targets([scene for scene, _ in made], self.settings.spec.grid)
        self.model.train()
        return cell_loss(self.model.read(self.model.vision(pixels([image for _, image in made]))), targets)

    def _answers_loss(self) -> Tensor:
        """Answers to fresh questions, the words of the visual tokens, and where the words of the questions look."""
        settings = self.settings
        rng = np.random.default_rng([settings.seed, STAGES.index("answers"), self.step])
        indices = [int(i) for i in rng.integers(settings.pool, size=settings.batch["answers"])]
        self.model.eval()
        scenes = self._encode_new(indices)
        packed = pack([questions_for(scene, rng) for scene in scenes], self.tokenizer, settings.spec.grid**2)
        projected = self.model.projector(torch.stack([self._features[index] for index in indices]).float())
        targets = cell_targets(scenes, settings.spec.grid)
        pointed = pointers(packed, scenes, self.tokenizer, settings.spec.grid)
        logits, pointing, places = _decode(self.model, projected, packed, pointed.at)
        return (
            answer_loss(logits, packed)
            + _TOKEN_WEIGHT * token_loss(self.model, projected, targets, self.tokenizer)
            + _POINTER_WEIGHT * pointer_loss(pointing, places, pointed)
        )

    @torch.no_grad()
    def _encode_new(self, indices: list[int]) -> list[Scene]:
        """The scenes of the pool at `indices`; those met for the first time are drawn and encoded (once: the encoder
        rests in this stage)."""
        size = self.settings.spec.image_size
        scenes: list[Scene] = []
        images: dict[int, Pixels] = {}
        for index in indices:
            rng = scene_rng("train", stream_seed(SCENE_STREAM, self.settings.seed), index)
            scenes.append(compose("train", rng, size))
            if index not in self._features and index not in images:
                images[index] = render(scenes[-1], rng)
        if images:
            encoded = self.model.vision(pixels(list(images.values()))).half()
            self._features |= dict(zip(images, encoded, strict=True))
        return scenes

    # -- scores ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Scores of the averaged weights on the held-out slice of the training split."""
        settings = self.settings
        model = NanoFastVLM(settings.spec)
        model.load_state_dict(self.average)
        model.eval()
        right: dict[str, float] = {}
        total: dict[str, float] = {}
        for first in range(0, settings.validation_scenes, 16):
            indices = range(first, min(first + 16, settings.validation_scenes))
            made = [train_scene(VALIDATION_STREAM, settings.seed, i, settings.spec.image_size) for i in indices]
            features = model.vision(pixels([image for _, image in made]))
            scenes = [scene for scene, _ in made]
            if self.stage == "vision":
                scores = cell_scores(model.read(features), cell_targets(scenes, settings.spec.grid))
                counts = {name: (score, 1.0) for name, score in scores.items()}
            else:
                rngs = [np.random.default_rng([settings.seed, 99, i]) for i in indices]
                asked = [questions_for(scene, rng) for scene, rng in zip(scenes, rngs, strict=True)]
                packed = pack(asked, self.tokenizer, features.shape[1])
                logits, _, _ = _decode(model, model.projector(features), packed, None)
                matches = exact_matches(logits, packed)
                counts = {name: (float(r), float(n)) for name, (r, n) in matches.items()}
            for name, (good, out_of) in counts.items():
                right[name] = right.get(name, 0.0) + good
                total[name] = total.get(name, 0.0) + out_of
        return {name: right[name] / total[name] for name in right if total[name]}


def _decode(
    model: NanoFastVLM, projected: Tensor, packed: Packed, pointed: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    result: tuple[Tensor, Tensor, Tensor] = model(
        projected, packed.ids, packed.positions, packed.mask, packed.labels != IGNORE, pointed
    )
    return result
