"""One run of transformers' FastVLM for all tests that compare with it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ORACLE_PACKAGES = Path(sys.prefix) / "oracle"


def minimal_tokenizer(folder: Path, size: int) -> None:
    """Write a tokenizer.json of `size` ids whose last two are `<|im_end|>` and `<image>`."""
    from tokenizers import AddedToken, Tokenizer, models

    tokenizer = Tokenizer(models.WordLevel({f"t{index}": index for index in range(size - 2)}, unk_token="t0"))
    tokenizer.add_special_tokens([AddedToken("<|im_end|>", special=True), AddedToken("<image>", special=True)])
    tokenizer.save(str(folder / "tokenizer.json"))


@pytest.fixture(scope="session")
def fastvlm_oracle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random checkpoint in the transformers layout, inputs, and transformers' outputs."""
    folder = tmp_path_factory.mktemp("fastvlm_oracle")
    assert ORACLE_PACKAGES.is_dir(), f"the oracle's packages are not in {ORACLE_PACKAGES}; run `make test`"
    environment = {**os.environ, "PYTHONPATH": str(ORACLE_PACKAGES), "HF_HUB_OFFLINE": "1"}
    script = Path(__file__).with_name("fastvlm_oracle.py")
    run = subprocess.run(
        [sys.executable, script, folder], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert run.returncode == 0, run.stderr[-3000:]
    minimal_tokenizer(folder / "hf", 301)
    return folder
