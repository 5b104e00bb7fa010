"""The state of one training run of a nano model and what one step of it does.

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
    describe_scene,
    pack,
    pixels,
    pointers,
    questions_for,
    train_scene,
)
from edgevlm.zoo.clip import ClipVision, caption, contrastive_loss, encode_captions, retrieval
from edgevlm.zoo.drawing import Pixels, Scene, render
from edgevlm.zoo.fused import fuse
from edgevlm.zoo.losses import (
    ahead,
    ahead_loss,
    answer_loss,
    cell_loss,
    cell_scores,
    exact_matches,
    pointer_loss,
    token_loss,
)
from edgevlm.zoo.nano import NanoSpec, NanoVLM
from edgevlm.zoo.scenes import Question, sample
from edgevlm.zoo.start_values import initialise
from edgevlm.zoo.starts import start_decoder, start_fusion
from edgevlm.zoo.tokenizer import build_tokenizer

# What learns in each stage, by the beginnings of the weights' names.
TRAINED = {
    "vision": ("vision.", "heads.", "features_norm.", "text."),
    "align": ("projector.", "place.", "seen_place."),
    "answers": ("projector.", "decoder.", "place.", "seen_place."),
    "queries": ("projector.", "region_heads."),
    "fusion": ("projector.", "compressor.", "fusion.", "decoder."),
}
CAPTIONED = 64
_EMA_DECAY = 0.995
_CONTRASTIVE_WEIGHT = 0.5
_TOKEN_WEIGHT = 0.3
_POINTER_WEIGHT = 0.3
_AHEAD_WEIGHT = 0.5


@dataclass(frozen=True)
class Settings:
    """What a training run is made of.

    Attributes:
        images: how many each stage sees; its keys are the stages, in their order.
        pool: so many scenes are encoded once for the stages in which the encoder rests.
        empty_weight: how much it counts that an empty cell is found empty, in `cell_loss`.
        clutter: half of the images have up to so many grey scribbles behind what matters.
        start_from: the shipped model that this one starts from once its encoder has learned: of a LLaVA the decoder,
            of a LLaVA-Mini, which has no encoder of its own, everything. None for random weights.
    """

    spec: NanoSpec
    seed: int = 0
    images: dict[str, int] = field(default_factory=lambda: {"vision": 14_000, "answers": 24_000})
    batch: dict[str, int] = field(default_factory=lambda: {"vision": 8, "answers": 8})
    peak_rate: dict[str, float] = field(default_factory=lambda: {"vision": 2e-3, "answers": 1e-3})
    pool: int = 8_000
    validation_scenes: int = 64
    validate_every: int = 150
    save_every_seconds: float = 180.0
    empty_weight: float = 1.0
    clutter: int = 0
    start_from: str | None = None

    @property
    def stages(self) -> tuple[str, ...]:
        return tuple(self.images)

    def steps(self, stage: str) -> int:
        return self.images[stage] // self.batch[stage]


class Trainer:
    """The state of one run: model, averaged weights, optimiser, stage and step."""

    def __init__(self, settings: Settings, workdir: Path) -> None:
        self.settings = settings
        self.workdir = workdir
        self.tokenizer: Tokenizer = build_tokenizer(settings.spec.decoder.vocab_size)
        self.model = NanoVLM(settings.spec)
        initialise(self.model, settings.seed)
        if settings.stages[0] != "vision" and settings.start_from is not None:
            start_fusion(self.model, settings.start_from)
        self.stage, self.step = settings.stages[0], 0
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
        if self.stage == "vision" and self.settings.start_from is not None:
            start_decoder(self.model, self.settings.start_from)
        self.stage, self.step, self.average = stage, 0, {}
        self.optimizer = self._new_optimizer()

    def _trained(self) -> dict[str, torch.nn.Parameter]:
        return {n: p for n, p in self.model.named_parameters() if n.startswith(TRAINED[self.stage])}

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
        trained = self._trained()
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in trained)
        loss = self._vision_loss() if stage == "vision" else self._resting_loss()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
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
        return [train_scene(stream, self.settings.seed, first + i, size, self.settings.clutter) for i in range(count)]

    def _vision_loss(self) -> Tensor:
        """What lies at each visual token; with a text tower also which caption belongs to which image."""
        settings, batch = self.settings, self.settings.batch["vision"]
        made = self._scenes(DENSE_STREAM, batch - batch // 4) + self._scenes(SCENE_STREAM, batch // 4)
        scenes = [scene for scene, _ in made]
        images = pixels([image for _, image in made], settings.spec)
        targets = cell_targets(scenes, settings.spec.grid, settings.spec.grid)
        self.model.train()
        vision, text = self.model.vision, self.model.text
        if not isinstance(vision, ClipVision) or text is None:
            return cell_loss(self.model.read(vision(images)), targets, settings.empty_weight)
        features, summaries = vision.both(images)
        rng = np.random.default_rng([settings.seed, 0, self.step])
        captions = [caption(scene, rng) for scene in scenes]
        said = text(*encode_captions(captions, self.tokenizer, text.spec))
        pairs = contrastive_loss(summaries, said, text.logit_scale)
        return cell_loss(self.model.read(features), targets, settings.empty_weight) + _CONTRASTIVE_WEIGHT * pairs

    def _resting_loss(self) -> Tensor:
        """With the encoder at rest: what lies in each region, or else answers to fresh questions, the words of the
        visual tokens, and where the words of the questions look."""
        settings = self.settings
        rng = np.random.default_rng([settings.seed, settings.stages.index(self.stage), self.step])
        indices = [int(i) for i in rng.integers(settings.pool, size=settings.batch[self.stage])]
        self.model.eval()
        scenes = self._encode_new(indices)
        projected = self.model.project(torch.stack([self._features[index] for index in indices]).float())
        if self.stage == "queries":
            return cell_loss(self.model.read_regions(projected), cell_targets(scenes, *settings.spec.regions))
        packed = self._pack([questions_for(scene, rng) for scene in scenes])
        if settings.spec.fusion is not None:
            return self._fusion_loss(projected, packed)
        targets = cell_targets(scenes, *settings.spec.regions)
        pointed = pointers(packed, scenes, self.tokenizer, *settings.spec.regions)
        logits, pointing, places = _decode(self.model, _embed(self.model, projected, packed), packed, pointed.at)
        return (
            answer_loss(logits, packed)
            + _TOKEN_WEIGHT * token_loss(self.model, projected, targets, self.tokenizer)
            + _POINTER_WEIGHT * pointer_loss(pointing, places, pointed)
        )

    def _fusion_loss(self, projected: Tensor, packed: Packed) -> Tensor:
        """Answers, the ends of the prompts that hold them, and where in those the decoder looks for the next word."""
        fused = _embed(self.model, projected, packed)
        row, column = (packed.labels != IGNORE).nonzero(as_tuple=True)
        held = ahead(packed)
        at = torch.stack((torch.zeros_like(row), row, column, held), dim=1)[held < column]
        logits, looking, _ = _decode(self.model, fused, packed, at)
        return (
            answer_loss(logits, packed)
            + _AHEAD_WEIGHT * ahead_loss(self.model, fused, packed)
            - _POINTER_WEIGHT * looking.mean()
        )

    def _pack(self, per_image: list[list[Question]]) -> Packed:
        spec = self.settings.spec
        return pack(per_image, self.tokenizer, spec.prompt_tokens, spec.prompt)

    @torch.no_grad()
    def _encode_new(self, indices: list[int]) -> list[Scene]:
        """The scenes of the pool at `indices`; those met for the first time are drawn and encoded (once: the encoder
        rests in this stage)."""
        size = self.settings.spec.image_size
        scenes: list[Scene] = []
        images: dict[int, Pixels] = {}
        for index in indices:
            scene, rng = describe_scene(SCENE_STREAM, self.settings.seed, index, size, self.settings.clutter)
            scenes.append(scene)
            if index not in self._features and index not in images:
                images[index] = render(scene, rng)
        if images:
            encoded = self.model.vision(pixels(list(images.values()), self.settings.spec)).half()
            self._features |= dict(zip(images, encoded, strict=True))
        return scenes

    # -- scores ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Scores of the averaged weights on the held-out slice of the training split."""
        settings = self.settings
        model = NanoVLM(settings.spec)
        model.load_state_dict(self.average)
        model.eval()
        right: dict[str, float] = {}
        total: dict[str, float] = {}
        for first in range(0, settings.validation_scenes, 16):
            indices = range(first, min(first + 16, settings.validation_scenes))
            made = [train_scene(VALIDATION_STREAM, settings.seed, i, settings.spec.image_size) for i in indices]
            images, scenes = pixels([image for _, image in made], settings.spec), [scene for scene, _ in made]
            features = model.vision(images)
            if self.stage in ("vision", "queries"):
                spec = settings.spec
                read, cells = (
                    (model.read(features), (spec.grid, spec.grid))
                    if self.stage == "vision"
                    else (model.read_regions(model.project(features)), spec.regions)
                )
                scores = cell_scores(read, cell_targets(scenes, *cells))
                counts = {name: (score, 1.0) for name, score in scores.items()}
            else:
                rngs = [np.random.default_rng([settings.seed, 99, i]) for i in indices]
                asked = [questions_for(scene, rng) for scene, rng in zip(scenes, rngs, strict=True)]
                packed = self._pack(asked)
                logits, _, _ = _decode(model, _embed(model, model.project(features), packed), packed, None)
                matches = exact_matches(logits, packed)
                counts = {name: (float(r), float(n)) for name, (r, n) in matches.items()}
            for name, (good, out_of) in counts.items():
                right[name] = right.get(name, 0.0) + good
                total[name] = total.get(name, 0.0) + out_of
        if self.stage == "vision" and settings.spec.text is not None:
            right["caption"], total["caption"] = self.match_captions("train"), 1.0
        return {name: right[name] / total[name] for name in right if total[name]}

    @torch.no_grad()
    def match_captions(self, split: str) -> float:
        """Share of `CAPTIONED` scenes (`test` split, or the held-out slice of `train`) whose own caption is the most
        similar to them of all, by the averaged weights."""
        settings, count = self.settings, CAPTIONED
        model = NanoVLM(settings.spec)
        model.load_state_dict(self.average)
        assert isinstance(model.vision, ClipVision)
        assert model.text is not None
        size, stream = settings.spec.image_size, VALIDATION_STREAM
        if split == "train":
            made = [train_scene(stream, settings.seed, i, size) for i in range(count)]
        else:
            made = [(scene, image) for scene, _, image in (sample(split, 0, i, size) for i in range(count))]
        rng = np.random.default_rng([settings.seed, 98])
        captions = [caption(scene, rng) for scene, _ in made]
        _, summaries = model.vision.both(pixels([image for _, image in made], settings.spec))
        return retrieval(summaries, model.text(*encode_captions(captions, self.tokenizer, model.text.spec)))


def _embed(model: NanoVLM, projected: Tensor, packed: Packed) -> Tensor:
    """What enters the decoder [B, T, H] of the image embeddings [B, N, H] and packed prompts."""
    x = model.embed(projected[:, -packed.image_tokens :], packed.ids)
    return x if model.fusion is None else fuse(model.fusion, projected, x, packed)


def _decode(model: NanoVLM, x: Tensor, packed: Packed, pointed: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    result: tuple[Tensor, Tensor, Tensor] = model(x, packed.positions, packed.mask, packed.labels != IGNORE, pointed)
    return result
