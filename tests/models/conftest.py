"""One run of transformers' FastVLM for all tests that compare with it."""

from pathlib import Path

import pytest
from oracle_process import run_oracle


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
    run_oracle(Path(__file__).with_name("fastvlm_oracle.py"), folder)
    minimal_tokenizer(folder / "hf", 301)
    return folder
