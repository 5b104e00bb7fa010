"""The pass `vocab`: rows of the embedding and the head that a task never uses are dropped, with their tokens.

In: a model and the task's text: a file, the set `scenes`, or the prompts and answers of the calibration data. Out: a
model with fewer rows and a smaller tokenizer, renumbered together. The text is cut into the same tokens as before,
which is checked; other text still encodes, in shorter pieces. Of a 0.5B model the embedding is a quarter.
"""

from __future__ import annotations

import atexit
import dataclasses
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict

from edgevlm.assembly import ImageAssembler
from edgevlm.calibration import Calibration
from edgevlm.calibration.sources import SCENES
from edgevlm.errors import EdgeVLMError, InputError
from edgevlm.models.checkpoint import read_json
from edgevlm.models.rebuild import with_decoder, with_note
from edgevlm.models.vlm import VlmModel
from edgevlm.passes import Pass, PassContext, Stage
from edgevlm.preprocess import prepare
from edgevlm.prompt import IMAGE_PLACEHOLDER, Message, PromptFormatter
from edgevlm.pruning.weights.vocabulary import Trimmed, trim
from edgevlm.spec import FramedLayout, ModelSpec, PromptSpec
from edgevlm.tokenizer import Tokenizer
from edgevlm.zoo.scenes import TYPES, ask, compose, scene_rng

#: Scenes whose questions and answers stand for the whole set.
_SCENES = 1000
#: Images, in pixels, that are cut into one tile, a row, a column and a square of tiles.
_SIZES = ((40, 40), (4000, 900), (900, 4000), (3000, 3000))
_MAX_CORPUS_BYTES = 256 << 20


class VocabConfig(BaseModel):
    """Which text must be cut as before.

    Attributes:
        corpus: a text file, or `scenes`; None takes the prompts and answers of the calibration data.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    corpus: str | None = None


class TrimVocabulary(Pass[VocabConfig]):
    """Fewer rows in embedding and head."""

    name, stage = "vocab", Stage.STRUCTURE
    page = "docs/weight-pruning.md"
    Config = VocabConfig

    def __init__(self, config: VocabConfig, seed: int) -> None:
        super().__init__(config, seed)
        self.needs_calibration = config.corpus is None
        if config.corpus not in (None, SCENES) and not Path(config.corpus).is_file():
            raise InputError("there is no such text", config.corpus, "name a text file, or scenes")

    def applies_to(self, spec: ModelSpec) -> str | None:
        """Nothing is known against it before the tokenizer has been read."""
        del spec
        return None

    @torch.no_grad()
    def run(self, model: VlmModel, context: PassContext) -> VlmModel:
        """The model with fewer rows.

        Raises:
            UnsupportedError: the tokenizer cannot be trimmed.
            EdgeVLMError: the smaller tokenizer would cut the text otherwise.
        """
        path = model.tokenizer_files["tokenizer.json"]
        texts = dict.fromkeys(self._texts(context.calibration))
        cutter = _Cutter(model, Tokenizer(path))
        seen = {0}  # LLaVA-Mini's fusion leaves id 0 out, so that it must stay where it is.
        for index, (prompt, answer) in enumerate(texts):
            if index % 100 == 0:
                context.progress(index, len(texts), "tokens of the text")
            seen.update(cutter.ids(prompt, answer))
        seen.update(cutter.layout_ids())
        trimmed = trim(read_json(path), seen | _special_ids(model.spec.prompt), str(path))
        smaller = _with_rows(model, trimmed)
        after = _Cutter(smaller, Tokenizer(smaller.tokenizer_files["tokenizer.json"]))
        new_ids = trimmed.new_ids
        for prompt, answer in texts:
            if after.ids(prompt, answer) != [new_ids[old] for old in cutter.ids(prompt, answer)]:
                raise EdgeVLMError(f"the smaller tokenizer cuts {prompt!r:.60} otherwise", str(path), "leave vocab out")
        before, rows = model.spec.decoder.vocab_size, smaller.spec.decoder.vocab_size
        return with_note(smaller, f"vocab: {rows} of {before} rows of the embedding are kept ({rows / before:.0%})")

    def _texts(self, calibration: Calibration | None) -> Iterator[tuple[str, str]]:
        """Prompts and answers; of plain text each line is both."""
        if self.config.corpus is None:
            assert calibration is not None
            yield from ((sample.prompt, sample.answer) for sample in calibration.samples())
        elif self.config.corpus == SCENES:
            yield from _scene_texts(self.seed)
        else:
            yield from ((line, line) for line in _lines(Path(self.config.corpus)))


def _scene_texts(seed: int) -> Iterator[tuple[str, str]]:
    """Questions and answers of scenes that nobody draws."""
    for index in range(_SCENES):
        rng = scene_rng("calibration", seed, index)
        scene = compose("calibration", rng)
        asked = (ask(question_type, scene, rng) for question_type in TYPES)
        yield from ((question.question, question.answer) for question in asked if question is not None)


def _lines(path: Path) -> list[str]:
    try:
        if path.stat().st_size > _MAX_CORPUS_BYTES:
            raise InputError("the text is too large", str(path), f"give at most {_MAX_CORPUS_BYTES >> 20} MiB of it")
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the text cannot be read: {error}", str(path), "give a text file in UTF-8") from error
    lines = [line for line in lines if line]
    if not lines:
        raise InputError("the text is empty", str(path), "give the prompts and answers of the task")
    return lines


class _Cutter:
    """The ids that one model makes of prompts and answers."""

    def __init__(self, model: VlmModel, tokenizer: Tokenizer) -> None:
        self._spec, self._tokenizer = model.spec, tokenizer
        self._formatter = PromptFormatter(model.spec.prompt, tokenizer)
        self._system = self._formatter.system_messages(None)

    def ids(self, prompt: str, answer: str) -> list[int]:
        """Ids of a question with an image, of its answer, and of the same question asked again after it."""
        question = Message("user", prompt, images=1)
        first = self._formatter.start([*self._system, question])
        said = self._tokenizer.encode_plain(answer)
        turns = [*self._system, question, Message("assistant", answer), Message("user", prompt)]
        ids = [*first, *said, *self._formatter.follow_up(turns)]
        return [token_id for token_id in ids if token_id != IMAGE_PLACEHOLDER]

    def layout_ids(self) -> set[int]:
        """Ids that stand between the tiles of images of any shape."""
        found = set[int]()
        if isinstance(self._spec.prompt.image_layout, FramedLayout):
            assembler = ImageAssembler(self._spec, self._tokenizer)
            for size in _SIZES:
                image = prepare(Image.new("RGB", size), self._spec.preprocess)
                nothing = np.zeros((len(image.tiles), self._spec.vision.image_tokens, 1), np.float32)
                pieces = assembler.pieces(nothing, image)
                found.update(token for piece in pieces if piece.ndim == 1 for token in piece.tolist())
        return found


def _special_ids(prompt: PromptSpec) -> set[int]:
    named = (*prompt.stop_token_ids, prompt.bos_token_id, prompt.image_token_id)
    return {token_id for token_id in named if token_id is not None}


def _with_rows(model: VlmModel, trimmed: Trimmed) -> VlmModel:
    """The model with the rows of the kept ids, and the smaller tokenizer beside it."""
    old, prompt = model.spec.decoder, model.spec.prompt
    # A token beyond the embedding, such as the image's, has no row.
    rows = torch.tensor([token_id for token_id in trimmed.old_ids if token_id < old.vocab_size])
    changed = {"embed_tokens.weight": model.decoder.embed_tokens.weight[rows]}
    if not old.tied_embeddings:
        changed["lm_head.weight"] = model.decoder.lm_head.weight[rows]
        if old.head_bias:
            changed["lm_head.bias"] = model.decoder.lm_head.bias[rows]
    new_ids = trimmed.new_ids
    smaller = with_decoder(model, dataclasses.replace(old, vocab_size=len(rows)), changed)
    bos = prompt.bos_token_id
    prompt = dataclasses.replace(
        prompt,
        image_token_id=new_ids.get(prompt.image_token_id, len(trimmed.old_ids)),
        bos_token_id=None if bos is None else new_ids[bos],
        stop_token_ids=tuple(new_ids[stop] for stop in prompt.stop_token_ids if stop in new_ids),
    )
    files = _write(model.tokenizer_files, trimmed, new_ids.get)
    return dataclasses.replace(smaller, spec=dataclasses.replace(smaller.spec, prompt=prompt), tokenizer_files=files)


def _write(files: dict[str, Path], trimmed: Trimmed, new_id: Callable[[int], int | None]) -> dict[str, Path]:
    """The tokenizer's files with new ids, in a folder that is removed when the process ends."""
    folder = Path(tempfile.mkdtemp(prefix="edgevlm-vocab-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    contents = {"tokenizer.json": trimmed.data}
    for name in files.keys() - contents.keys():
        contents[name] = _renumbered(read_json(files[name]), new_id)
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return {name: folder / name for name in files}


def _renumbered(settings: dict[str, Any], new_id: Callable[[int], int | None]) -> dict[str, Any]:
    """`tokenizer_config.json` or `generation_config.json` with new ids; ids without a token are left out."""

    def renumber(value: Any) -> Any:
        if isinstance(value, list):
            return [new for new in map(renumber, value) if new is not None]
        return new_id(value) if isinstance(value, int) and not isinstance(value, bool) else value

    changed = {key: renumber(value) if key.endswith("_token_id") else value for key, value in settings.items()}
    if isinstance(table := settings.get("added_tokens_decoder"), dict):
        pairs: Iterable[tuple[int | None, Any]] = ((new_id(int(old)), entry) for old, entry in table.items())
        changed["added_tokens_decoder"] = {str(new): entry for new, entry in pairs if new is not None}
    return changed
