"""One tokenizer for all tests of this folder."""

from pathlib import Path

import pytest
from gguf_models import write_tokenizer


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tokenizer files of a checkpoint, by name."""
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))
