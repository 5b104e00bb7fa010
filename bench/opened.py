"""Opens what a job names: a bundle through `edgevlm.load`, or the uncompressed checkpoint through the torch engines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import edgevlm
from edgevlm.bench.job import Job
from edgevlm.bench.report import Engine
from edgevlm.bench.subject import Reply, Shown
from edgevlm.runtimes.base import EngineOptions
from edgevlm.runtimes.device import parse_device
from edgevlm.session import Session

#: So many first tokens are kept with their probabilities; a vocabulary of 150,000 would be megabytes an item.
FIRST_TOKENS = 32


class SessionSubject:
    """A session as the bench sees it."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def answer(self, image: Shown, prompt: str, *, max_tokens: int, to_the_end: bool, reuse: bool) -> Reply:
        """Answer greedily; see `Subject`. Likeliest tokens are only told where the answer is not timed to the end."""
        answer = self._session.generate(
            image, prompt, max_tokens=max_tokens, ignore_eos=to_the_end, reuse=reuse, keep_logits=not to_the_end
        )
        stats = answer.stats
        return Reply(
            text=answer.text,
            token_ids=answer.token_ids,
            preprocess_ms=stats.preprocess_ms,
            vision_ms=stats.vision_ms,
            fusion_ms=stats.fusion_ms,
            prefill_ms=stats.prefill_ms,
            first_decode_ms=stats.first_decode_ms,
            gaps_ms=stats.token_gaps_ms,
            image_tokens=stats.image_tokens,
            prompt_tokens=stats.prompt_tokens,
            reused_tokens=stats.reused_tokens,
            first_tokens=() if answer.first_logits is None else likeliest(answer.first_logits),
        )

    def engines(self) -> tuple[Engine, Engine]:
        """The vision and the decoder engine."""
        vision, decoder = self._session.engine_stats()
        return Engine(name=vision.name, details=vision.details), Engine(name=decoder.name, details=decoder.details)


def likeliest(logits: NDArray[np.float32]) -> tuple[tuple[int, float], ...]:
    """The `FIRST_TOKENS` likeliest of `[V]` tokens, likeliest first, with their logarithmic probabilities."""
    wide = logits.astype(np.float64)
    log_probabilities = wide - wide.max()
    log_probabilities -= np.log(np.exp(log_probabilities).sum())
    ranked = np.argsort(-log_probabilities, kind="stable")[:FIRST_TOKENS]
    return tuple((int(token), float(log_probabilities[token])) for token in ranked)


def open_subject(job: Job) -> SessionSubject:
    """Load what `job` names.

    Raises:
        InputError: it cannot be loaded.
    """
    if job.kind == "reference":
        return SessionSubject(_reference(Path(job.path), job))
    session = edgevlm.load(
        job.path,
        vision_engine=job.vision_engine,
        decoder_engine=job.decoder_engine,
        threads=job.threads,
        kv_cache=job.kv_cache,
        device=job.device,
    )
    return SessionSubject(session)


def _reference(folder: Path, job: Job) -> Session:
    """The checkpoint in float32 on torch, on the GPU asked for where torch has it. Of the host half: imported here."""
    import torch

    from edgevlm.models import load
    from edgevlm.runtimes.torch import TorchDecoder, TorchFusion, TorchVision
    from edgevlm.tokenizer import Tokenizer

    if job.threads:
        torch.set_num_threads(job.threads)
    model = load(folder)
    tokenizer = Tokenizer(model.tokenizer_files["tokenizer.json"])
    device = parse_device(job.device)
    decoder = TorchDecoder(model, EngineOptions(threads=job.threads, device=device))
    newline = None if model.image_newline is None else model.image_newline.float().numpy()
    fusion = None if model.fusion is None else TorchFusion(model, device)
    return Session(model.spec, tokenizer, TorchVision(model, device), decoder, newline, fusion)
