"""One tiny model and its bundle for all tests of the engines."""

import pytest
from tiny import tiny_bundle, tiny_model

from edgevlm.bundle import Bundle
from edgevlm.models.vlm import VlmModel


@pytest.fixture(scope="session")
def model() -> VlmModel:
    return tiny_model()


@pytest.fixture(scope="session")
def bundle(model: VlmModel, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(model, tmp_path_factory.mktemp("tiny") / "bundle")
