"""Prove that an exported bundle still answers like the original, stage by stage.

In: the original `VlmModel`, the bundle's folder, and thresholds. Out: one `ParityResult` a metric. The inputs are
fixed: two generated images and four questions about each. Metrics:

- vision, cosine: of the image features, the smaller of the two images, or the smallest of the eight questions where
  image tokens are chosen by them;
- vision, kept tokens, where tokens are pruned: the share of the original's that the bundle kept too, whose cosine is
  then that above;
- fusion, cosine, for models that have one: of the fused prompts, with the original's image features, the smallest of
  eight;
- decoder, logits cosine: after each prompt, with the original's image features or fused prompt, the mean of eight;
- decoder, kept tokens, where the decoder drops image tokens: the share of those that go on in the original which do in
  the bundle, too, with the original's image features, the mean over eight prompts and all stages;
- decoder, top-1 agreement: share of those prompts with the same likeliest token;
- bundle, token agreement: of the greedy answers of the whole bundle (at most eight tokens), the share of tokens up to
  the first that the original, at the same place, would not have chosen.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgevlm import reference
from edgevlm.assembly import ImageAssembler
from edgevlm.bundle import ParityResult
from edgevlm.child import run_child
from edgevlm.context import Part, image_parts, segments, splice
from edgevlm.errors import ParityError
from edgevlm.exporters.base import Progress
from edgevlm.imageio import load_image
from edgevlm.models.footprint import release
from edgevlm.models.vlm import VlmModel
from edgevlm.pipeline.alignment import aligned, shares_going_on
from edgevlm.pipeline.candidate import as_arrays, read_encoded
from edgevlm.preprocess import PreparedImage, prepare
from edgevlm.prompt import Message, PromptFormatter
from edgevlm.recipe import Precision, VerifyThresholds, VisionPrecision
from edgevlm.runtimes.base import Encoded, Segment
from edgevlm.runtimes.dropped import DroppedPlaces
from edgevlm.runtimes.positions import flat
from edgevlm.tokenizer import Tokenizer
from edgevlm.zoo.scenes import scenes

Picture: TypeAlias = NDArray[np.uint8]
#: Of tokens, among those that entered a stage of the decoder.
Places: TypeAlias = NDArray[np.int64]

IMAGES = 2
PROMPTS = 8
TOKENS = 8
_CHILD_TIMEOUT_S = 900.0


@dataclass(frozen=True)
class Thresholds:
    """The least values that pass."""

    vision_cosine: float
    logits_cosine: float
    top1_agreement: float
    token_agreement: float
    fusion_cosine: float
    kept_tokens: float


#: By the precision of the decoder; `vision_cosine` is looked up by that of the vision tower, `kept_tokens` by that of
#: the one that prunes them.
THRESHOLDS: dict[VisionPrecision, Thresholds] = {
    "fp32": Thresholds(0.9999, 0.9999, 1.0, 1.0, 0.9999, 0.95),
    "fp16": Thresholds(0.999, 0.999, 1.0, 0.9, 0.999, 0.9),
    "int8": Thresholds(0.99, 0.99, 0.875, 0.75, 0.99, 0.75),
    "w8a8": Thresholds(0.98, 0.99, 0.875, 0.75, 0.99, 0.5),
    "int4": Thresholds(0.9, 0.9, 0.625, 0.5, 0.9, 0.5),
}


def thresholds(
    decoder: Precision, vision: VisionPrecision, overrides: VerifyThresholds, *, decoder_drops: bool = False
) -> Thresholds:
    """The table's row for these precisions, with the recipe's overrides.

    `decoder_drops` says that image tokens are pruned inside the decoder, if at all.
    """
    seen = THRESHOLDS[vision]
    kept = THRESHOLDS[decoder if decoder_drops else vision].kept_tokens
    table = replace(THRESHOLDS[decoder], vision_cosine=seen.vision_cosine, kept_tokens=kept)
    given = {name: value for name, value in overrides.model_dump().items() if value is not None}
    return Thresholds(**{**vars(table), **given})


def cosine(first: reference.Float32, second: reference.Float32) -> float:
    """Cosine of two arrays of the same shape, over all elements, in float64."""
    a, b = first.astype(np.float64).ravel(), second.astype(np.float64).ravel()
    return float(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-30))


def verify(model: VlmModel, bundle: Path, limits: Thresholds, progress: Progress) -> list[ParityResult]:
    """Measure a bundle against its original.

    Raises:
        EngineError: the bundle's engines failed.
    """
    pictures, prompts, questions = _fixed_inputs(model)
    if model.spec.vision.text is None:
        questions = []
    else:
        # Each question sees the picture in its own way.
        pictures = [pictures[index * len(pictures) // len(prompts)] for index in range(len(prompts))]
    images = [prepare(load_image(picture), model.spec.preprocess) for picture in pictures]
    progress(0, 3, "verify: the original's vision")
    encoded = reference.encoded_images(model, images, questions)
    features = [image.rows for image in encoded]
    with tempfile.TemporaryDirectory(prefix="edgevlm-verify-") as name:
        folder = Path(name)
        arrays = {"images": np.array(len(images)), "prompts": np.array(len(prompts))}
        arrays |= {f"image{index}": picture for index, picture in enumerate(pictures)}
        arrays |= as_arrays(encoded)
        arrays |= {f"prompt{index}": np.array(prompt) for index, prompt in enumerate(prompts)}
        arrays |= {f"question{index}": np.array(question) for index, question in enumerate(questions)}
        fused = _fused_prompts(model, features, prompts)
        arrays |= {f"fused{index}": rows for index, rows in enumerate(fused)}
        np.savez(folder / "inputs.npz", allow_pickle=False, **arrays)
        release(model.vision, *([] if model.fusion is None else [model.fusion]), model.decoder)
        run_child(
            "edgevlm.pipeline.candidate:measure",
            {"bundle": str(bundle), "folder": name, "tokens": TOKENS},
            timeout=_CHILD_TIMEOUT_S,
            on_message=lambda message: progress(1 + message[0] / message[1], 3, "verify: the bundle answers"),
        )
        with np.load(folder / "outputs.npz", allow_pickle=False) as outputs:
            found = [read_encoded(outputs, index) for index in range(len(images))]
            found_fused = [outputs[f"fused{index}"] for index in range(len(fused))]
            logits = outputs["logits"]
            answers = [outputs[f"tokens{index}"].tolist() for index in range(len(prompts))]
            drop = model.spec.decoder.token_drop
            stages = range(0 if drop is None else len(drop.stages))
            going_on = [[outputs[f"kept{index}.{stage}"] for stage in stages] for index in range(len(prompts))]
    progress(2, 3, "verify: the original answers")
    if fused:
        given: list[list[Segment]] = [[rows] for rows in fused]
    else:
        given = _spliced(prompts, _image_parts(model, images, encoded))
    first, agreed, shares = _reference_answers(model, given, answers, going_on)
    pairs = [(image.rows, rows) for image, rows in zip(found, features, strict=True)]
    kept = 1.0
    if model.spec.vision.reducer is not None:
        pairs, kept = _kept_by_both(list(zip(found, encoded, strict=True)))
    values = {
        ("vision", "vision_cosine"): min(cosine(a, b) for a, b in pairs),
        ("decoder", "logits_cosine"): float(np.mean([cosine(a, b) for a, b in zip(logits, first, strict=True)])),
        ("decoder", "top1_agreement"): float(np.mean(logits.argmax(-1) == first.argmax(-1))),
        ("bundle", "token_agreement"): sum(agreed) / sum(map(len, answers)),
    }
    if fused:
        values["fusion", "fusion_cosine"] = min(cosine(a, b) for a, b in zip(found_fused, fused, strict=True))
    if model.spec.vision.reducer is not None:
        values["vision", "kept_tokens"] = kept
    if shares:
        values["decoder", "kept_tokens"] = float(np.mean(shares))
    progress(3, 3, "verified")
    return [
        ParityResult(
            stage=stage,
            metric=metric,
            value=round(value, 6),
            threshold=getattr(limits, metric),
            passed=bool(value >= getattr(limits, metric)),
        )
        for (stage, metric), value in values.items()
    ]


def _kept_by_both(
    pairs: list[tuple[Encoded, Encoded]],
) -> tuple[list[tuple[reference.Float32, reference.Float32]], float]:
    """Of each image's features those tokens that both kept, and the least share of them in a tile.

    Tokens that are shared out among tiles have places, which are compared, image by image.
    """
    matched, shares = [], []
    for (found, held), (wanted, meant) in pairs:
        if held is not None and meant is not None:
            both, ours_at, theirs_at = np.intersect1d(held[held >= 0], meant[meant >= 0], return_indices=True)
            width = found.shape[-1]
            matched.append((found.reshape(-1, width)[ours_at], wanted.reshape(-1, width)[theirs_at]))
            shares.append(len(both) / int((meant >= 0).sum()))
            continue
        places = [aligned(a, b) for a, b in zip(found, wanted, strict=True)]
        shares += [len(places_found) / found.shape[1] for places_found, _ in places]
        ours = np.concatenate([rows[places_found] for rows, (places_found, _) in zip(found, places, strict=True)])
        theirs = np.concatenate([rows[places_wanted] for rows, (_, places_wanted) in zip(wanted, places, strict=True)])
        matched.append((ours, theirs))
    return matched, min(shares)


def require(results: list[ParityResult], where: str) -> None:
    """Raise if a result did not pass.

    Raises:
        ParityError: names the metrics that fell below their thresholds.
    """
    failed = [f"{r.stage} {r.metric} {r.value:.4f} < {r.threshold}" for r in results if not r.passed]
    if failed:
        raise ParityError(
            f"the exported model does not answer like the original: {'; '.join(failed)}",
            where,
            "use a higher precision, or lower the recipe's verify thresholds if that is meant",
        )


def _fixed_inputs(model: VlmModel) -> tuple[list[Picture], list[list[int]], list[str]]:
    """Two pictures, eight prompts as ids and their questions; the first four belong to the first picture."""
    spec = model.spec
    formatter = PromptFormatter(spec.prompt, Tokenizer(model.tokenizer_files["tokenizer.json"]))
    by_image: dict[str, list[tuple[Picture, str]]] = {}
    for item in scenes("calibration", 64):
        by_image.setdefault(item.image_id, []).append((item.image, item.question))
    full = [items for items in by_image.values() if len(items) >= PROMPTS // IMAGES][:IMAGES]
    system = formatter.system_messages(None)
    questions = [question for items in full for _, question in items[: PROMPTS // IMAGES]]
    prompts = [formatter.start([*system, Message("user", question, images=1)]) for question in questions]
    return [items[0][0] for items in full], prompts, questions


def _image_parts(model: VlmModel, images: list[PreparedImage], features: list[Encoded]) -> list[list[Part]]:
    """What each image becomes in the context."""
    newline = None if model.image_newline is None else model.image_newline.float().numpy()
    assembler = ImageAssembler(model.spec, Tokenizer(model.tokenizer_files["tokenizer.json"]), newline)
    pairs = zip(images, features, strict=True)
    return [image_parts(assembler.pieces(seen.rows, image, seen.places), image.key) for image, seen in pairs]


def _fused_prompts(
    model: VlmModel, features: list[reference.Float32], prompts: list[list[int]]
) -> list[reference.Float32]:
    """What the original's decoder sees of each prompt, for a model with a fusion; else nothing."""
    if model.fusion is None:
        return []
    images = [features[index * len(features) // len(prompts)][0] for index in range(len(prompts))]
    return reference.fused_prompts(model, images, prompts)


def _spliced(prompts: list[list[int]], images: list[list[Part]]) -> list[list[Segment]]:
    """The prompts with their images in place."""
    return [
        segments(splice(prompt, [images[index * len(images) // len(prompts)]])) for index, prompt in enumerate(prompts)
    ]


def _reference_answers(
    model: VlmModel, prompts: list[list[Segment]], answers: list[list[int]], going_on: list[list[Places]]
) -> tuple[reference.Float32, list[int], list[float]]:
    """The original's logits after each prompt `[P, V]`, and how many leading tokens of each answer it agrees with.

    One pass over prompt and answer together: the logits before each answer token tell what the original chose there.
    Third, where the decoder drops image tokens: for each prompt and stage the share of those that go on in the original
    which go on in the bundle, too, by `going_on`, the bundle's places.
    """
    drop, sequences, counts, images = model.spec.decoder.token_drop, [], [], []
    for prompt, answer in zip(prompts, answers, strict=True):
        images.append(tuple(DroppedPlaces(drop).image_starts(flat(prompt)).tolist()))
        said = [np.array(answer[:-1], np.int32)] if len(answer) > 1 else []
        parts = [*prompt, *said]
        sequences.append(
            [part if part.ndim > 1 else reference.token_embeddings(model, part.tolist()) for part in parts]
        )
        counts.append(len(answer))
    kept: list[list[Places]] = [[] for _ in prompts]
    logits = reference.last_logits(model, sequences, counts, images, lambda number, places: kept[number].append(places))
    agreed = []
    for rows, answer in zip(logits, answers, strict=True):
        same = rows.argmax(-1) == np.array(answer)
        agreed.append(int(same.argmin()) if not same.all() else len(answer))
    shares = []
    if drop is not None:
        for starts, found, wanted in zip(images, going_on, kept, strict=True):
            image = np.concatenate([np.arange(start, start + drop.image_tokens) for start in starts])
            shares += shares_going_on(found, wanted, image)
    return np.stack([rows[0] for rows in logits]), agreed, shares
