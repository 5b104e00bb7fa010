"""A smaller vocabulary: the task's text is cut as before, other text still encodes, rows go with their tokens."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from llama_tokenizer import build_llama_tokenizer
from llama_vocabulary import CORPUS, vocabulary
from pruned_models import logits_of, run, scenes, silent
from tokenizers import Tokenizer as Backend

from edgevlm.calibration import Calibration, Sample
from edgevlm.errors import EdgeVLMError, InputError, UnsupportedError
from edgevlm.exporters.gguf import exporter as gguf
from edgevlm.models import VlmModel, load, resolve
from edgevlm.models.checkpoint import read_json
from edgevlm.pruning.weights.vocab import TrimVocabulary
from edgevlm.pruning.weights.vocabulary import Trimmed, trim
from edgevlm.spec import FramedLayout
from edgevlm.zoo.evaluate import answers
from edgevlm.zoo.scenes import scenes as make_scenes
from edgevlm.zoo.synth import synth
from edgevlm.zoo.tokenizer import build_tokenizer

TEXTS = ["What colour is the circle?", "Is there a red square?", "above", "How many shapes are there?", " 7 ", "yes"]
Cut = Callable[[str], list[int]]


def byte_level() -> dict[str, Any]:
    return dict(json.loads(build_tokenizer().to_str()))


def sentencepiece() -> dict[str, Any]:
    return dict(json.loads(build_llama_tokenizer().to_str()))


def cutter(data: dict[str, Any]) -> Backend:
    return Backend.from_str(json.dumps(data))


def trimmed_for(data: dict[str, Any], texts: list[str]) -> Trimmed:
    backend = cutter(data)
    return trim(data, {i for text in texts for i in backend.encode(text, add_special_tokens=False).ids}, "there")


@pytest.mark.parametrize("make", [byte_level, sentencepiece])
def test_the_corpus_is_cut_as_before_and_other_text_still_encodes(make: Callable[[], dict[str, Any]]) -> None:
    data = make()
    smaller = trimmed_for(data, TEXTS)
    before, after, new_ids = cutter(data), cutter(smaller.data), smaller.new_ids
    assert len(smaller.old_ids) < 0.7 * before.get_vocab_size()
    for text in TEXTS:
        old = before.encode(text, add_special_tokens=False).ids
        assert after.encode(text, add_special_tokens=False).ids == [new_ids[i] for i in old]
    for text in [*CORPUS, *TEXTS]:
        ids = after.encode(text, add_special_tokens=False).ids
        assert after.decode(ids, skip_special_tokens=False) == before.decode(
            before.encode(text, add_special_tokens=False).ids, skip_special_tokens=False
        )
    assert {t.content: new_ids[i] for i, t in before.get_added_tokens_decoder().items()} == {
        t.content: i for i, t in after.get_added_tokens_decoder().items()
    }
    assert smaller.old_ids == sorted(smaller.old_ids)


def test_merges_of_random_text_are_kept_consistent() -> None:
    """Texts of random syllables: each is cut as before by the tokenizer trimmed for it alone."""
    data, rng = byte_level(), np.random.default_rng(0)
    syllables = [piece.replace("Ġ", " ") for piece in data["model"]["vocab"] if piece.isascii()]
    for _ in range(25):
        text = "".join(rng.choice(syllables, 12))
        smaller = trimmed_for(data, [text])
        old, new = cutter(data).encode(text).ids, cutter(smaller.data).encode(text).ids
        assert new == [smaller.new_ids[i] for i in old]


def test_templates_name_the_new_ids() -> None:
    """Llama's post-processor puts <s> before a text, by its id."""
    data = sentencepiece()
    start = data["model"]["vocab"]["<s>"]
    template = {"id": "<s>", "ids": [start], "tokens": ["<s>"]}
    single = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    pair = [*single, {"Sequence": {"id": "B", "type_id": 0}}]
    data["post_processor"] = {
        "type": "TemplateProcessing",
        "single": single,
        "pair": pair,
        "special_tokens": {"<s>": template},
    }
    data["added_tokens"] = [{**entry, "id": entry["id"]} for entry in data["added_tokens"]]
    smaller = trimmed_for(data, TEXTS)
    first = cutter(smaller.data).encode("yes").ids[0]
    assert first == smaller.new_ids[start] == cutter(smaller.data).token_to_id("<s>")


def test_other_kinds_of_vocabulary_are_refused() -> None:
    for model in ({"type": "Unigram", "vocab": []}, {"type": "BPE", "vocab": {}, "end_of_word_suffix": "</w>"}):
        with pytest.raises(UnsupportedError, match="cannot be trimmed"):
            trim({"model": model}, [], "there")


@pytest.fixture(scope="module")
def nano() -> VlmModel:
    return load(resolve("zoo:nano-fastvlm"))


@pytest.fixture(scope="module")
def small(nano: VlmModel) -> VlmModel:
    return run(TrimVocabulary, nano, None, corpus="scenes")


def test_answers_on_the_task_stay_the_same_with_most_rows_gone(nano: VlmModel, small: VlmModel) -> None:
    assert small.spec.decoder.vocab_size <= 0.6 * nano.spec.decoder.vocab_size
    assert small.decoder.embed_tokens.weight.shape[0] == small.spec.decoder.vocab_size
    items = list(make_scenes("test", 120))
    with torch.no_grad():
        for model in (nano, small):
            model.vision.float()
            model.decoder.float()
        assert answers(small, items) == answers(nano, items)


def test_special_ids_move_with_their_tokens(nano: VlmModel, small: VlmModel) -> None:
    tokenizer, prompt = Backend.from_file(str(small.tokenizer_files["tokenizer.json"])), small.spec.prompt
    old = Backend.from_file(str(nano.tokenizer_files["tokenizer.json"]))
    names = [old.id_to_token(stop) for stop in nano.spec.prompt.stop_token_ids]
    assert [tokenizer.id_to_token(stop) for stop in prompt.stop_token_ids] == names
    assert tokenizer.token_to_id("<image>") == prompt.image_token_id
    generation = read_json(small.tokenizer_files["generation_config.json"])
    assert generation["eos_token_id"] in prompt.stop_token_ids
    table = read_json(small.tokenizer_files["tokenizer_config.json"])["added_tokens_decoder"]
    assert {int(i): entry["content"] for i, entry in table.items()} == {
        i: token.content for i, token in tokenizer.get_added_tokens_decoder().items()
    }


def test_llama_cpp_cuts_like_the_smaller_tokenizer(small: VlmModel, tmp_path: Path) -> None:
    gguf.export(small, tmp_path, gguf_type="f16", progress=silent)
    tokenizer = Backend.from_file(str(small.tokenizer_files["tokenizer.json"]))
    with vocabulary(tmp_path / "model-f16.gguf") as tokenize:
        for text in [*TEXTS, *(text for text in CORPUS if tokenizer.normalizer.normalize_str(text) == text)]:
            assert tokenize(text) == tokenizer.encode(text, add_special_tokens=False).ids, text


def test_both_tokenizers_cut_the_whole_task_as_before(nano: VlmModel, small: VlmModel, tmp_path: Path) -> None:
    """Questions and answers of scenes that the pass never saw, in their chat template: the ids are the old ones,
    renumbered, in `tokenizer.json` and in the GGUF, and give the text back."""
    old, new = (Backend.from_file(str(model.tokenizer_files["tokenizer.json"])) for model in (nano, small))
    gguf.export(small, tmp_path, gguf_type="f16", progress=silent)
    texts = {f"<|im_start|>user\n{item.question}<|im_end|>\n<|im_start|>assistant\n{item.answer}<|im_end|>\n"
             for item in make_scenes("test", 150)}  # fmt: skip
    assert len(texts) > 60
    with vocabulary(tmp_path / "model-f16.gguf") as tokenize:
        for text in texts:
            before = old.encode(text, add_special_tokens=False)
            after = new.encode(text, add_special_tokens=False)
            assert after.tokens == before.tokens
            assert [new.token_to_id(token) for token in before.tokens] == after.ids == tokenize(text)
            assert new.decode(after.ids, skip_special_tokens=False) == text


def test_an_untied_head_loses_the_same_rows(tmp_path: Path) -> None:
    """Phi's head has a bias; the image token of TinyGPT-V lies beyond its embedding."""
    synth("tinygpt-v", tmp_path / "tiny", tiny=True)
    model, few = load(tmp_path / "tiny"), scenes(3)
    smaller = run(TrimVocabulary, model, few)
    rows = smaller.spec.decoder.vocab_size
    assert rows < model.spec.decoder.vocab_size
    assert smaller.decoder.lm_head.weight.shape[0] == smaller.decoder.lm_head.bias.shape[0] == rows
    assert smaller.spec.prompt.image_token_id >= rows
    old = Backend.from_file(str(model.tokenizer_files["tokenizer.json"]))
    new = Backend.from_file(str(smaller.tokenizer_files["tokenizer.json"]))
    columns = [old.token_to_id(new.id_to_token(i)) for i in range(rows)]
    for a, b in zip(logits_of(model, few), logits_of(smaller, few), strict=True):
        np.testing.assert_allclose(a[:, columns], b, atol=1e-4)


def test_text_between_tiles_is_kept(tmp_path: Path) -> None:
    """Rows of tiles end in a token of two characters; the corpus has none, and no image is looked at."""
    synth("smolvlm-256m", tmp_path / "tiny", tiny=True)
    model = load(tmp_path / "tiny")
    layout = model.spec.prompt.image_layout
    assert isinstance(layout, FramedLayout)
    layout = dataclasses.replace(layout, row_end=".\n")
    prompt = dataclasses.replace(model.spec.prompt, image_layout=layout)
    model = dataclasses.replace(model, spec=dataclasses.replace(model.spec, prompt=prompt))
    (tmp_path / "task.txt").write_text("red")
    smaller = run(TrimVocabulary, model, None, corpus=str(tmp_path / "task.txt"))
    assert smaller.spec.decoder.vocab_size < model.spec.decoder.vocab_size
    old = Backend.from_file(str(model.tokenizer_files["tokenizer.json"]))
    new = Backend.from_file(str(smaller.tokenizer_files["tokenizer.json"]))
    text = layout.row_end + layout.whole_text
    assert ".Ċ" in old.encode(text, add_special_tokens=False).tokens
    assert new.encode(text, add_special_tokens=False).tokens == old.encode(text, add_special_tokens=False).tokens
    image = np.zeros((900, 2400, 3), np.uint8)
    wide = Calibration(lambda: iter([Sample(image, "red")]), 1)
    assert all(torch.isfinite(logits).all() for logits in logits_of(smaller, wide))


def test_text_files_and_what_is_wrong_with_them(nano: VlmModel, tmp_path: Path) -> None:
    corpus = tmp_path / "task.txt"
    corpus.write_text("Read the number.\n\nred\n")
    smaller = run(TrimVocabulary, nano, None, corpus=str(corpus))
    assert smaller.spec.decoder.vocab_size < 0.6 * nano.spec.decoder.vocab_size
    with pytest.raises(InputError, match="no such text"):
        run(TrimVocabulary, nano, None, corpus=str(tmp_path / "absent.txt"))
    corpus.write_text("\n \n")
    with pytest.raises(InputError, match="the text is empty"):
        run(TrimVocabulary, nano, None, corpus=str(corpus))
    corpus.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read"):
        run(TrimVocabulary, nano, None, corpus=str(corpus))
    made = TrimVocabulary(TrimVocabulary.Config(), 0)
    assert made.needs_calibration


def test_a_tokenizer_that_would_cut_otherwise_is_an_error(nano: VlmModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check in the pass itself: merges of the pieces on the way are missing."""

    def broken(data: dict[str, Any], seen: set[int], where: str) -> Trimmed:
        honest = trim(data, seen, where)
        honest.data["model"]["merges"] = honest.data["model"]["merges"][:5]
        return honest

    monkeypatch.setattr("edgevlm.pruning.weights.vocab.trim", broken)
    with pytest.raises(EdgeVLMError, match=r"cuts .* otherwise"):
        run(TrimVocabulary, nano, None, corpus="scenes")
