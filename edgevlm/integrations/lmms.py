"""Bundles as a model of lmms-eval, found through its entry-point group `lmms_eval.models`.

    python -m lmms_eval --model edgevlm --model_args bundle=out/onnx --tasks pope --force_simple

lmms-eval (0.7.3) is not a dependency and is imported only when it loads this plug-in. The model is a simple one: a
request holds (context, generation arguments, doc_to_visual, document id, task, split). Log-likelihoods and dialogues of
several rounds are refused by name, for a session offers neither to a stranger.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edgevlm.errors import InputError, UnsupportedError
from edgevlm.session import load

if TYPE_CHECKING:
    from edgevlm.runtimes.base import KvCache

MODEL_ID = "edgevlm"
_CLASS = "EdgeVLM"
_IMAGE = "<image>"
_MAX_TOKENS = 128
#: What lmms-eval passes to every model; one process answers one question after the other on what the bundle is for.
_IGNORED = ("batch_size", "max_batch_size", "device")


def manifest() -> Any:
    """What lmms-eval registers: its `ModelManifest`, which names the class by its path."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id=MODEL_ID, simple_class_path=f"{__name__}.{_CLASS}", chat_class_path=None, aliases=())


def __getattr__(name: str) -> Any:
    """The class `EdgeVLM`, made when lmms-eval looks for it, since its base is lmms-eval's own."""
    if name == _CLASS:
        return _model_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@functools.cache
def _model_class() -> type:
    from lmms_eval.api.model import lmms

    class EdgeVLM(lmms):  # type: ignore[misc]
        """A bundle."""

        is_simple = True

        def __init__(
            self,
            bundle: str = "",
            vision_engine: str = "auto",
            decoder_engine: str = "auto",
            threads: int = 0,
            kv_cache: KvCache = "auto",
            **others: object,
        ) -> None:
            """Open the bundle.

            Raises:
                InputError: there is none, it cannot be loaded, or an argument is unknown.
            """
            unknown = sorted(others.keys() - set(_IGNORED))
            if unknown or not bundle:
                what = f"unknown model argument {unknown[0]!r}" if unknown else "no bundle was named"
                raise InputError(what, "--model_args", "give bundle=FOLDER, and engines, threads or kv_cache")
            self.model_name = bundle
            super().__init__()
            self._session = load(
                bundle,
                vision_engine=vision_engine,
                decoder_engine=decoder_engine,
                threads=int(threads),
                kv_cache=kv_cache,
            )

        def generate_until(self, requests: Sequence[Any]) -> list[str]:
            """One answer a request, in order."""
            return [self._answer(*request.args) for request in requests]

        def _answer(self, context: str, options: Any, visual: Any, document: Any, task: str, split: str) -> str:
            pictures = list(visual(self.task_dict[task][split][document]) or ())
            until = options.get("until") or ()
            sampled = bool(options.get("do_sample"))
            answer = self._session.generate(
                pictures or None,
                context.replace(_IMAGE, "").strip(),
                max_tokens=int(options.get("max_new_tokens") or _MAX_TOKENS),
                temperature=float(options.get("temperature") or 0.0) if sampled else 0.0,
                stop=[text for text in ([until] if isinstance(until, str) else until) if text],
            )
            return answer.text

        def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:  # noqa: ARG002 (their signature)
            """Refused: a session does not score given answers.

            Raises:
                UnsupportedError: always.
            """
            raise UnsupportedError("log-likelihoods are not supported", MODEL_ID, "choose tasks that generate text")

        def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:  # noqa: ARG002
            """Refused.

            Raises:
                UnsupportedError: always.
            """
            raise UnsupportedError("tasks of several rounds are not supported", MODEL_ID, "choose others")

    return EdgeVLM
