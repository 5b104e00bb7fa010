"""The interface of lmms-eval 0.7.3 as a plug-in meets it: names, fields and the checks of its registry.

The package itself brings some 150 others and is met in a process of its own (`lmms_oracle.py`); tests that watch
from inside use these in its place.
"""

import abc
import importlib
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest


@dataclass(frozen=True)
class ModelManifest:
    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None
    aliases: tuple[str, ...] = ()


class Model(abc.ABC):
    """Like `lmms_eval.api.model.lmms`."""

    is_simple = True

    def __init__(self) -> None:
        self.task_dict: dict[str, Any] = {}

    @abc.abstractmethod
    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]: ...

    @abc.abstractmethod
    def generate_until(self, requests: list[Any]) -> list[str]: ...

    @abc.abstractmethod
    def generate_until_multi_round(self, requests: list[Any]) -> list[str]: ...


@dataclass(frozen=True)
class Instance:
    """A request of a simple model."""

    args: tuple[str, dict[str, Any], Callable[[Any], list[Any]], int, str, str]


@dataclass
class Registry:
    """Loads entry points and resolves a model as lmms-eval's does."""

    manifests: dict[str, ModelManifest] = field(default_factory=dict)

    def load(self, value: str) -> None:
        """Take one entry point, `module:name`; its payload is a manifest, several, or a callable that gives them."""
        module, _, name = value.partition(":")
        payload = getattr(importlib.import_module(module), name)
        found = payload() if callable(payload) else payload
        for manifest in [found] if isinstance(found, ModelManifest) else found:
            assert isinstance(manifest, ModelManifest)
            self.manifests[manifest.model_id] = manifest

    def get_model_class(self, name: str) -> type[Model]:
        manifest = self.manifests[name]
        path = manifest.chat_class_path or manifest.simple_class_path
        assert path is not None
        module, _, class_name = path.rpartition(".")
        cls = getattr(importlib.import_module(module), class_name)
        assert isinstance(cls, type)
        assert issubclass(cls, Model)
        assert cls.is_simple == (manifest.chat_class_path is None)
        return cls


def install(patch: pytest.MonkeyPatch) -> None:
    """Let `import lmms_eval...` find this."""
    modules = {name: types.ModuleType(name) for name in ("lmms_eval", "lmms_eval.api", "lmms_eval.models")}
    modules["lmms_eval.api.model"] = types.ModuleType("lmms_eval.api.model")
    modules["lmms_eval.api.model"].__dict__["lmms"] = Model
    modules["lmms_eval.models.registry_v2"] = types.ModuleType("lmms_eval.models.registry_v2")
    modules["lmms_eval.models.registry_v2"].__dict__["ModelManifest"] = ModelManifest
    for name, module in modules.items():
        patch.setitem(sys.modules, name, module)
