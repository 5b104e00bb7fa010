"""A tiny bundle and an image for the verbs that read one."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import tiny_bundle, tiny_model

from edgevlm.bundle import Bundle


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tiny_model(), tmp_path_factory.mktemp("tiny") / "bundle")


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "image.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(path)
    return path
