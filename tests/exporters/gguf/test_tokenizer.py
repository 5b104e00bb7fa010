"""The tokenizer inside a GGUF, as llama.cpp reads it, cuts text as `tokenizers` does from tokenizer.json."""

import json
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import pytest
from gguf_models import QWEN2, ROWS, make_model
from llama_vocabulary import CORPUS, vocabulary
from tokenizers import Tokenizer

from edgevlm.errors import CheckpointError, UnsupportedError
from edgevlm.exporters.gguf.exporter import export
from edgevlm.exporters.gguf.tokenizer import add_tokenizer
from edgevlm.spec import PromptSpec


@pytest.fixture(scope="module")
def llama_tokenize(
    files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], list[int]]]:
    out = tmp_path_factory.mktemp("gguf")
    export(make_model(QWEN2, files), out, gguf_type="f16", progress=lambda *_: None)
    with vocabulary(out / "model-f16.gguf") as tokenize:
        yield tokenize


@pytest.mark.parametrize("text", CORPUS)
def test_llama_cpp_cuts_text_like_tokenizers(
    llama_tokenize: Callable[[str], list[int]], files: dict[str, Path], text: str
) -> None:
    expected = Tokenizer.from_file(str(files["tokenizer.json"])).encode(text, add_special_tokens=False).ids
    assert llama_tokenize(unicodedata.normalize("NFC", text)) == expected


@pytest.fixture(scope="module")
def smollm(files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Tokenizer]]:
    """SmolLM's way of cutting: each digit alone, then GPT-2's expression."""
    out = tmp_path_factory.mktemp("smollm")

    def change(data: dict[str, Any]) -> None:
        byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
        steps = [{"type": "Digits", "individual_digits": True}, byte_level]
        data["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}

    changed = altered(files, out, change)
    export(make_model(QWEN2, changed), out, gguf_type="f16", progress=lambda *_: None)
    with vocabulary(out / "model-f16.gguf") as tokenize:
        yield tokenize, Tokenizer.from_file(str(changed["tokenizer.json"]))


@pytest.mark.parametrize("text", [*CORPUS, "In 1969: 3.14159, 12 345 and x2y10", "½ of ²³ Ⅷ", "it's  '' can't"])
def test_llama_cpp_cuts_text_like_smollm(smollm: tuple[Any, Tokenizer], text: str) -> None:
    tokenize, expected = smollm
    assert tokenize(unicodedata.normalize("NFC", text)) == expected.encode(text, add_special_tokens=False).ids


def write(
    files: dict[str, Path], tmp_path: Path, rows: int = ROWS, prompt: PromptSpec | None = None
) -> gguf.GGUFReader:
    writer = gguf.GGUFWriter(tmp_path / "vocabulary.gguf", "qwen2")
    add_tokenizer(writer, files, prompt or PromptSpec("{{ messages }}", stop_token_ids=(1022,)), rows)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return gguf.GGUFReader(tmp_path / "vocabulary.gguf")


def altered(files: dict[str, Path], tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> dict[str, Path]:
    data = json.loads(files["tokenizer.json"].read_text())
    change(data)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(data))
    return {**files, "tokenizer.json": path}


def test_keys_say_what_the_tokens_are(files: dict[str, Path], tmp_path: Path) -> None:
    fields = write(files, tmp_path).fields
    types = fields["tokenizer.ggml.token_type"].contents()
    tokens = fields["tokenizer.ggml.tokens"].contents()
    assert fields["tokenizer.ggml.model"].contents() == "gpt2"
    assert fields["tokenizer.ggml.pre"].contents() == "qwen2"
    assert fields["tokenizer.ggml.eos_token_id"].contents() == tokens.index("<|im_end|>") == 1022
    assert fields["tokenizer.ggml.padding_token_id"].contents() == tokens.index("<|endoftext|>")
    assert fields["tokenizer.ggml.add_bos_token"].contents() is False
    assert len(tokens) == ROWS
    assert set(types[1024:]) == {gguf.TokenType.UNUSED}
    assert types[1022] == gguf.TokenType.CONTROL
    assert types[100] == gguf.TokenType.NORMAL


def test_image_marker_may_lie_outside_the_embedding(files: dict[str, Path], tmp_path: Path) -> None:
    assert len(write(files, tmp_path, rows=1023).fields["tokenizer.ggml.tokens"].contents()) == 1023


def test_other_tokens_outside_the_embedding_are_refused(files: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="1022"):
        write(files, tmp_path, rows=1022)


def test_unknown_pre_tokenizer_is_refused(files: dict[str, Path], tmp_path: Path) -> None:
    def change(data: dict[str, Any]) -> None:
        data["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\w+|\W+"

    with pytest.raises(UnsupportedError):
        write(altered(files, tmp_path, change), tmp_path)


def test_older_form_of_merges_is_read(files: dict[str, Path], tmp_path: Path) -> None:
    def change(data: dict[str, Any]) -> None:
        data["model"]["merges"] = [
            merge if isinstance(merge, str) else " ".join(merge) for merge in data["model"]["merges"]
        ]

    old = write(altered(files, tmp_path, change), tmp_path).fields["tokenizer.ggml.merges"].contents()
    assert old == write(files, tmp_path).fields["tokenizer.ggml.merges"].contents()


@pytest.mark.parametrize("content", ["", "[]", '{"model": 3}', '{"model": {"type": "BPE", "vocab": {"a": "b"}}}'])
def test_broken_tokenizer_is_one_clear_error(files: dict[str, Path], tmp_path: Path, content: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises((CheckpointError, UnsupportedError)):
        write({**files, "tokenizer.json": path}, tmp_path)


def test_missing_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        write({}, tmp_path)
