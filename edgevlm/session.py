"""A session: the engines of one bundle, and everything above them.

In: an image and a question. Out: an `Answer`, or text as it is generated. The session prepares image and prompt,
splices image embeddings between token ids, reuses what the key/value cache and the image cache already hold, and times
each stage, once for all engines.

Models with a fusion (LLaVA-Mini) see image and text mixed: every turn about an image or video fuses the conversation
anew, from the system text to the new question, as the published code does, and prefills all of it. Only the very same
prompt is found in the caches.

A session answers one request at a time: it owns one key/value cache. A second request, from another thread or while a
stream is still open, gets an error at once; load a second session to answer in parallel.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TypeAlias, get_args

from edgevlm.answer import Answer, AnswerStats, GenerationArguments, GenerationOptions
from edgevlm.bundle import open_bundle
from edgevlm.context import (
    Frames,
    Part,
    common_prefix,
    image_positions,
    join_frames,
    prefills,
    segments,
    splice,
    total_positions,
    whole_turns,
    with_turn,
)
from edgevlm.errors import EdgeVLMError, InputError
from edgevlm.feature_rows import load_newline
from edgevlm.fusing import PromptFuser
from edgevlm.generation import Generated, generate_tokens
from edgevlm.imageio import ImageInput, load_image
from edgevlm.preprocess import prepare
from edgevlm.prompt import Message, PromptFormatter
from edgevlm.question import QuestionReader
from edgevlm.runtimes.base import (
    DecoderEngine,
    EngineOptions,
    EngineStats,
    Float32,
    FusionEngine,
    KvCache,
    VisionEngine,
)
from edgevlm.runtimes.checks import check_fits
from edgevlm.runtimes.device import parse_device
from edgevlm.runtimes.select import open_decoder, open_fusion, open_vision
from edgevlm.seeing import ImageReader, open_questions
from edgevlm.spec import ModelSpec
from edgevlm.stream import Stream
from edgevlm.tokenizer import Tokenizer

if TYPE_CHECKING:
    from typing_extensions import Unpack

#: One image, or several for one question.
Images: TypeAlias = "ImageInput | Sequence[ImageInput]"


def load(
    path: str | Path,
    *,
    vision_engine: str = "auto",
    decoder_engine: str = "auto",
    threads: int = 0,
    context_length: int = 0,
    kv_cache: KvCache = "auto",
    device: str = "auto",
    verify: bool = False,
) -> Session:
    """Open a bundle and load its engines.

    Args:
        path: the bundle's folder.
        vision_engine: `tensorrt`, `onnxruntime`, `openvino`, or `auto`, the fastest here.
        decoder_engine: `tensorrt`, `onnxruntime`, `llama_cpp`, or `auto`.
        threads: CPU threads; 0 uses all physical cores.
        context_length: positions of the key/value cache; 0 takes min(model maximum, 4096).
        kv_cache: with llama.cpp, `f16` (`auto`), `q8_0` or `q4_0`: half and about a quarter of the memory.
        device: `cpu`, `cuda:0`, `tensorrt:0` (ONNX Runtime's TensorRT provider), or `auto`, which each engine decides.
        verify: also compare every file's SHA-256.

    Raises:
        BundleError: the bundle is incomplete, altered or unsafe.
        InputError: an engine is unknown, not installed or cannot read this bundle, or an option is out of range.
        EngineError: an engine cannot load its artefact.
    """
    if threads < 0:
        raise InputError(f"{threads} threads are out of range", "threads", "give 1 or more, or 0 for all cores")
    if kv_cache not in get_args(KvCache):
        known = ", ".join(get_args(KvCache))
        raise InputError(f"there is no way {kv_cache!r} to store keys and values", "kv_cache", f"one of: {known}")
    bundle = open_bundle(path, verify=verify)
    tokenizer = Tokenizer(bundle.artifact("tokenizer", "tokenizer.json"))
    options = EngineOptions(threads, context_length, kv_cache=kv_cache, device=parse_device(device))
    with contextlib.ExitStack() as opened:
        vision = open_vision(bundle, vision_engine, options)
        opened.callback(vision.close)
        decoder = open_decoder(bundle, decoder_engine, options)
        opened.callback(decoder.close)
        fusion = open_fusion(bundle, options)
        if fusion is not None:
            opened.callback(fusion.close)
        questions = open_questions(bundle, options)
        if questions is not None:
            opened.callback(questions.close)
        session = Session(bundle.spec, tokenizer, vision, decoder, load_newline(bundle), fusion, questions)
        opened.pop_all()
    return session


class Session:
    """Answers questions about images with one bundle. Use it in a `with` block, or call `close`."""

    def __init__(
        self,
        spec: ModelSpec,
        tokenizer: Tokenizer,
        vision: VisionEngine,
        decoder: DecoderEngine,
        newline: Float32 | None = None,
        fusion: FusionEngine | None = None,
        questions: QuestionReader | None = None,
    ) -> None:
        """Put a session together from its parts; `load` does it for a bundle.

        `newline` is the embedding that ends a row of image features, for models that have one; `fusion` is for models
        with a `FusionSpec`, `questions` for those whose image tokens depend on the question (`VisionSpec.text`).

        Raises:
            BundleError: the chat template is not usable, or a newline is missing.
        """
        self.spec = spec
        self.tokenizer = tokenizer
        self.formatter = PromptFormatter(spec.prompt, tokenizer)
        self._vision = vision
        self._decoder = decoder
        self._fusion = fusion
        self._questions = questions
        self._fuser = None
        if spec.fusion is not None:
            assert fusion is not None, "a model with a fusion needs its engine"
            self._fuser = PromptFuser(spec.fusion, fusion, decoder)
        self._reader = ImageReader(spec, tokenizer, vision, newline, questions)
        self._context: list[Part] = []
        self._busy = threading.Lock()
        self._closed = False

    def generate(
        self,
        image: Images | None,
        prompt: str,
        *,
        system: str | None = None,
        video: bool = False,
        **options: Unpack[GenerationArguments],
    ) -> Answer:
        """Answer a question about an image.

        Args:
            image: a path, encoded bytes, a Pillow image or a uint8 array `[H, W, 3]`, or a list of these for a question
                about several; None asks without an image.
            prompt: the question.
            system: the system message; None takes the model's own, an empty one leaves it out.
            video: the images are frames of one video, in the order of time, for models that take one. They are to be
                sampled as in training, LLaVA-Mini's at one a second (`edgevlm.video.sample`).
            options: see `GenerationOptions`.

        Raises:
            InputError: the image, the prompt or an option cannot be used, or the prompt does not fit the context.
            EngineError: an engine failed.
        """
        stream = self.stream(image, prompt, system=system, video=video, **options)
        for _ in stream:
            pass
        return stream.answer

    def stream(
        self,
        image: Images | None,
        prompt: str,
        *,
        system: str | None = None,
        video: bool = False,
        **options: Unpack[GenerationArguments],
    ) -> Stream:
        """Like `generate`, but an iterator of text pieces; once it is exhausted, its `answer` holds the whole."""
        return self.chat(system).stream(prompt, image, video=video, **options)

    def chat(self, system: str | None = None) -> Chat:
        """A conversation of several turns, in which each image is encoded and prefilled once."""
        return Chat(self, self.formatter.system_messages(system))

    def engine_stats(self) -> tuple[EngineStats, EngineStats]:
        """What the vision engine and the decoder engine say of themselves."""
        return self._vision.stats(), self._decoder.stats()

    def close(self) -> None:
        """Free the engines; the session cannot be used afterwards."""
        if not self._closed:
            self._closed = True
            self._vision.close()
            self._decoder.close()
            if self._fusion is not None:
                self._fusion.close()
            if self._questions is not None:
                self._questions.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def run(
        self,
        history: list[Part],
        tokenise: Callable[[], list[int]],
        images: list[ImageInput],
        options: GenerationOptions,
        *,
        question: str,
        video: bool = False,
    ) -> Generator[str, None, tuple[Answer, list[Part]]]:
        """Answer one turn: yield text pieces, return the answer and the context that the next turn continues.

        Args:
            history: what the conversation holds so far.
            tokenise: renders and tokenises what is new, with a placeholder for each of `images`, or one for a video.
            images: the new images, in order.
            options: how to generate.
            question: what the user asks in this turn: image tokens that depend on a question depend on this one, in
                later turns, too.
            video: the images are frames of one video.

        Raises:
            InputError: a video has no frames, or the model takes none.
        """
        if self._closed:
            raise EdgeVLMError("the session is closed", "session", "load the bundle again")
        if video:
            self._check_video(len(images))
        if not self._busy.acquire(blocking=False):
            raise EdgeVLMError(
                "the session is answering another request", "session", "finish or close that stream, or load a second"
            )
        try:
            started = time.perf_counter()
            ids = tokenise()
            tiled = [prepare(load_image(image), self.spec.preprocess, len(images)) for image in images]
            placeholders = 1 if video else len(tiled)
            reserved = total_positions(history) + len(ids) - placeholders + sum(map(self._reader.positions, tiled))
            check_fits(0, reserved, self._decoder.context_length)
            prepared = time.perf_counter()
            known = bool(tiled)
            encoded = []
            for image in tiled:
                pieces, was_cached = self._reader.read(image, question, reuse=options.reuse)
                encoded.append(pieces)
                known = known and was_cached
            if video:
                frames = [part for parts in encoded for part in parts if isinstance(part, Frames)]
                encoded = [[join_frames(frames)]]
            seen = time.perf_counter()
            parts = [*history, *splice(ids, encoded)]
            if self.spec.decoder.token_drop is not None:
                parts = with_turn(parts, len(history))
            given = parts if self._fuser is None else self._fuser.fuse(parts, reuse=options.reuse)
            fused = time.perf_counter() if self._fuser is not None else seen
            logits, reused = self._prefill(given, reuse=options.reuse)
            prefilled = time.perf_counter()
            first_logits = logits.copy() if options.keep_logits else None

            prompt = self.spec.prompt
            if prompt.stop_strings and not options.ignore_eos:
                options = replace(options, stop=(*options.stop, *prompt.stop_strings))
            loop = generate_tokens(
                self._decoder,
                logits,
                self.tokenizer,
                frozenset(() if options.ignore_eos else prompt.stop_token_ids),
                options,
                self._context.append,
            )
            done: Generated = yield from loop
            stats = AnswerStats(
                preprocess_ms=1000 * (prepared - started),
                vision_ms=1000 * (seen - prepared),
                fusion_ms=None if self._fuser is None else 1000 * (fused - seen),
                prefill_ms=1000 * (prefilled - fused),
                first_decode_ms=1000 * done.first_token_s,
                token_gaps_ms=tuple(1000 * gap for gap in done.gaps_s),
                image_tokens=image_positions(parts),
                prompt_tokens=total_positions(parts),
                reused_tokens=reused,
                image_cached=known,
                vision_engine=self._vision.stats().name,
                decoder_engine=self._decoder.stats().name,
            )
            rest = self.tokenizer.encode_plain(done.rest) if done.rest else []
            said = [*done.token_ids[: done.kept], *rest]
            return Answer(done.text, done.token_ids, done.finish_reason, stats, first_logits), [*parts, *said]
        finally:
            self._busy.release()

    def _check_video(self, frames: int) -> None:
        if self.spec.fusion is None:
            raise InputError("this model takes no video", "video", "ask about one image, or about several")
        if frames == 0:
            raise InputError("the video has no frames", "video", "give at least one")

    def _prefill(self, parts: list[Part], *, reuse: bool) -> tuple[Float32, int]:
        """Bring the key/value cache to hold `parts`; the logits of the last position, and positions that were there.

        At least the last part goes through the decoder, for its logits. Where that chooses among an image's tokens, it
        does so by the turn that the image came with: turns are then prefilled one by one, and reused whole.
        """
        keep = whole_turns(parts, common_prefix(self._context, parts[:-1])) if reuse else 0
        reused = total_positions(parts[:keep])
        self._decoder.reset(reused)
        # Until the prefill succeeds nothing beyond what is kept may be relied upon.
        self._context = parts[:keep]
        for new in prefills(parts, keep):
            logits = self._decoder.prefill(segments(new))
            self._context += new
        return logits, reused


class Chat:
    """A conversation. Turns add to it when they end; a turn that fails or is closed leaves it unchanged."""

    def __init__(self, session: Session, messages: list[Message]) -> None:
        self._session = session
        self._messages = messages
        self._parts: list[Part] = []

    def ask(
        self, prompt: str, image: Images | None = None, *, video: bool = False, **options: Unpack[GenerationArguments]
    ) -> Answer:
        """Ask, with new images (or frames of a video) or about the earlier ones; only what is new is prefilled.

        Models with a fusion prefill the whole conversation in each turn about an image or a video.

        Raises:
            InputError: the image, the prompt or an option cannot be used, or the conversation fills the context.
            EngineError: an engine failed.
        """
        stream = self.stream(prompt, image, video=video, **options)
        for _ in stream:
            pass
        return stream.answer

    def stream(
        self, prompt: str, image: Images | None = None, *, video: bool = False, **options: Unpack[GenerationArguments]
    ) -> Stream:
        """Like `ask`, but an iterator of text pieces."""
        return Stream(self._turn(prompt, _as_list(image), GenerationOptions(**options), video))

    def _turn(
        self, prompt: str, images: list[ImageInput], options: GenerationOptions, video: bool
    ) -> Generator[str, None, Answer]:
        messages = [*self._messages, Message("user", prompt, 1 if video else len(images))]
        render = self._session.formatter.follow_up if self._parts else self._session.formatter.start
        answer, parts = yield from self._session.run(
            self._parts, lambda: render(messages), images, options, question=prompt, video=video
        )
        self._messages = [*messages, Message("assistant", answer.text)]
        self._parts = parts
        return answer


def _as_list(images: Images | None) -> list[ImageInput]:
    """The images of one turn."""
    if images is None:
        return []
    return list(images) if isinstance(images, list | tuple) else [images]  # type: ignore[list-item]
