"""Llama's tokenizer inside a GGUF: llama.cpp cuts text as `tokenizers` does, and bundles decode what they stream."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest
from gguf_models import LLAMA, make_model
from llama_tokenizer import build_llama_tokenizer
from llama_vocabulary import CORPUS, vocabulary
from tokenizers import Tokenizer

from edgevlm.errors import UnsupportedError
from edgevlm.exporters.gguf.exporter import export
from edgevlm.exporters.gguf.tokenizer import add_tokenizer
from edgevlm.spec import PromptSpec
from edgevlm.tokenizer import Tokenizer as Streaming

TEXTS = [
    *CORPUS,
    "</s>USER: What is it?</s>",
    " leading and trailing ",
    "\u2581written\u2581so",
    "<0x41> is not a byte",
    "<s>A chat. USER: \nHow many?\nASSISTANT:",
]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    path = tmp_path_factory.mktemp("llama") / "tokenizer.json"
    build_llama_tokenizer().save(str(path))
    return {"tokenizer.json": path}


@pytest.fixture(scope="module")
def cut(files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], list[int]]]:
    out = tmp_path_factory.mktemp("gguf")
    model = make_model(LLAMA, files)
    prompt = PromptSpec("{{ messages }}", bos_token_id=1, stop_token_ids=(2,))
    export(replace(model, spec=replace(model.spec, prompt=prompt)), out, gguf_type="f16", progress=lambda *_: None)
    with vocabulary(out / "model-f16.gguf") as tokenize:
        yield tokenize


@pytest.mark.parametrize("text", TEXTS)
def test_llama_cpp_cuts_text_like_tokenizers(
    cut: Callable[[str], list[int]], files: dict[str, Path], text: str
) -> None:
    assert cut(text) == Tokenizer.from_file(str(files["tokenizer.json"])).encode(text, add_special_tokens=False).ids


def test_streamed_pieces_equal_the_full_decode(files: dict[str, Path]) -> None:
    tokenizer = Streaming(files["tokenizer.json"])
    for text in TEXTS:
        ids = tokenizer.encode_plain(text)
        stream = tokenizer.detokenizer()
        assert "".join([*(stream.add(token_id) for token_id in ids), stream.finish()]) == tokenizer.decode(ids)
        assert tokenizer.decode(ids) == text.replace("\u2581", " ")


def write(files: dict[str, Path], tmp_path: Path) -> gguf.GGUFReader:
    writer = gguf.GGUFWriter(tmp_path / "vocabulary.gguf", "llama")
    add_tokenizer(writer, files, PromptSpec("{{ messages }}", bos_token_id=1, stop_token_ids=(2,)), 1040)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return gguf.GGUFReader(tmp_path / "vocabulary.gguf")


def test_keys_say_what_the_tokens_are(files: dict[str, Path], tmp_path: Path) -> None:
    fields = {key: field.contents() for key, field in write(files, tmp_path).fields.items()}
    types, tokens = fields["tokenizer.ggml.token_type"], fields["tokenizer.ggml.tokens"]
    assert fields["tokenizer.ggml.model"] == "llama"
    assert fields["tokenizer.ggml.add_bos_token"] is True
    assert fields["tokenizer.ggml.add_space_prefix"] is True
    assert fields["tokenizer.ggml.bos_token_id"] == tokens.index("<s>")
    assert types[:3] == [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL]
    assert set(types[3:259]) == {gguf.TokenType.BYTE}
    assert types[259] == gguf.TokenType.NORMAL
    scores = fields["tokenizer.ggml.scores"]
    assert scores[259] == 0
    assert scores[260] == -1


@pytest.mark.parametrize("scheme", ["always", "first", "never"])
def test_metaspace_forms_are_read(scheme: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    build_llama_tokenizer(scheme=scheme).save(str(path))
    fields = write({"tokenizer.json": path}, tmp_path).fields
    assert fields["tokenizer.ggml.add_space_prefix"].contents() is (scheme != "never")


def without_a_split(model: dict[str, Any]) -> None:
    longest = max(model["merges"], key=lambda pair: len("".join(pair)))
    model["merges"].remove(longest)


def out_of_order(model: dict[str, Any]) -> None:
    model["merges"].append(model["merges"].pop(next(i for i, p in enumerate(model["merges"]) if len("".join(p)) > 3)))


def without_bytes(model: dict[str, Any]) -> None:
    model["vocab"]["<0xZZ>"] = model["vocab"].pop("<0x0A>")


@pytest.mark.parametrize("change", [without_a_split, out_of_order, without_bytes])
def test_merges_that_no_sentencepiece_model_has_are_refused(
    change: Callable[[dict[str, Any]], None], files: dict[str, Path], tmp_path: Path
) -> None:
    data = json.loads(files["tokenizer.json"].read_text())
    change(data["model"])
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(data))
    with pytest.raises(UnsupportedError):
        write({"tokenizer.json": path}, tmp_path)
