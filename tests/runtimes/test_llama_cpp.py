"""The llama.cpp engine computes what the IR computes in torch, keeps its cache right, and refuses what would abort."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import gguf
import gguf.quants
import numpy as np
import pytest
import torch
from gguf_models import LLAMA, PHI2, QWEN2, make_model, write_tokenizer

from edgevlm.errors import EngineError, InputError
from edgevlm.exporters.gguf.exporter import export
from edgevlm.models.vlm import VlmModel
from edgevlm.runtimes.base import DecoderEngine, EngineOptions, Float32, Segment
from edgevlm.runtimes.llama_cpp import LlamaCppDecoder
from edgevlm.runtimes.llama_embedding import TokenEmbedding
from edgevlm.spec import DecoderSpec

LONG = 1100
SPECS = {spec.architecture: replace(spec, max_position_embeddings=LONG) for spec in (QWEN2, LLAMA, PHI2)}
ONE_THREAD = EngineOptions(threads=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("gguf")
    files = write_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    for name, spec in SPECS.items():
        (out / name).mkdir()
        for gguf_type in ("f32", "q4_0") if name == "qwen2" else ("f32",):
            export(make_model(spec, files), out / name, gguf_type=gguf_type, progress=lambda *_: None)
    return out


@pytest.fixture
def engine(folder: Path) -> Iterator[LlamaCppDecoder]:
    decoder = LlamaCppDecoder(folder / "qwen2" / "model-f32.gguf", SPECS["qwen2"], ONE_THREAD)
    yield decoder
    decoder.close()


def ids(*values: int) -> Segment:
    return np.array(values, np.int32)


def image(length: int, seed: int = 0) -> Float32:
    return np.random.default_rng(seed).standard_normal((length, QWEN2.hidden_size)).astype(np.float32)


def in_torch(model: VlmModel, segments: list[Segment]) -> Float32:
    rows = [model.decoder.embed_tokens(torch.from_numpy(s)) if s.ndim == 1 else torch.from_numpy(s) for s in segments]
    embeddings = torch.cat(rows)[None]
    logits, _ = model.decoder(embeddings, torch.arange(embeddings.shape[1])[None], last_only=True)
    result: Float32 = logits[0, 0].numpy()
    return result


def assert_close(ours: Float32, theirs: Float32) -> None:
    """Equal up to llama.cpp's float16 key/value cache."""
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs, atol=1e-2)
    assert np.corrcoef(ours, theirs)[0, 1] > 0.9999


@pytest.mark.parametrize("name", SPECS)
def test_image_prompt_and_tokens_after_it_match_torch(folder: Path, name: str) -> None:
    model = make_model(SPECS[name], {})
    engine: DecoderEngine = LlamaCppDecoder(folder / name / "model-f32.gguf", SPECS[name], ONE_THREAD)
    prompt = [ids(5, 6, 7), image(16), ids(9, 10)]
    assert_close(engine.prefill(prompt), in_torch(model, prompt))
    assert_close(engine.decode(17), in_torch(model, [*prompt, ids(17)]))
    assert_close(engine.decode(3), in_torch(model, [*prompt, ids(17, 3)]))
    assert engine.position == 23
    engine.close()


def test_text_prompt_matches_torch(engine: LlamaCppDecoder) -> None:
    prompt = [ids(5, 6, 7), ids(8)]
    assert_close(engine.prefill(prompt), in_torch(make_model(SPECS["qwen2"], {}), prompt))


@pytest.mark.parametrize("with_image", [False, True])
def test_prompt_longer_than_a_batch_is_cut_right(engine: LlamaCppDecoder, with_image: bool) -> None:
    tokens = np.random.default_rng(1).integers(0, QWEN2.vocab_size, 1030).astype(np.int32)
    prompt = [tokens, image(8)] if with_image else [tokens]
    assert_close(engine.prefill(prompt), in_torch(make_model(SPECS["qwen2"], {}), prompt))


def test_second_turn_continues_the_cache(engine: LlamaCppDecoder) -> None:
    first, second = [ids(5, 6), image(4)], [ids(7, 8)]
    engine.prefill(first)
    assert_close(engine.prefill(second), in_torch(make_model(SPECS["qwen2"], {}), first + second))
    assert engine.stats().reused_tokens == 6


def test_reset_keeps_the_front_and_forgets_the_rest(engine: LlamaCppDecoder) -> None:
    kept, forgotten, new = [ids(5, 6), image(4)], [ids(7, 8, 9)], [ids(10)]
    engine.prefill(kept + forgotten)
    engine.reset(keep=6)
    assert engine.position == 6
    assert_close(engine.prefill(new), in_torch(make_model(SPECS["qwen2"], {}), kept + new))
    engine.reset()
    assert_close(engine.prefill(new), in_torch(make_model(SPECS["qwen2"], {}), new))


def test_quantized_model_takes_images_as_its_full_precision_twin(folder: Path) -> None:
    engine = LlamaCppDecoder(folder / "qwen2" / "model-q4_0.gguf", SPECS["qwen2"], ONE_THREAD)
    prompt = [ids(5, 6, 7), image(16), ids(9, 10)]
    expected = in_torch(make_model(SPECS["qwen2"], {}), prompt)
    assert np.corrcoef(engine.prefill(prompt), expected)[0, 1] > 0.95
    engine.close()


@pytest.mark.parametrize("gguf_type", ["f32", "q4_0"])
def test_embedding_rows_are_those_of_the_file(folder: Path, gguf_type: str) -> None:
    path = folder / "qwen2" / f"model-{gguf_type}.gguf"
    table = next(t for t in gguf.GGUFReader(path).tensors if t.name == "token_embd.weight")
    expected = gguf.quants.dequantize(table.data, table.tensor_type)
    wanted = np.array([0, 1039, 7, 7], np.int32)
    embedding = TokenEmbedding(path, QWEN2.vocab_size, QWEN2.hidden_size)
    np.testing.assert_array_equal(embedding.rows(wanted), expected[wanted])
    embedding.close()


def test_context_is_bounded_and_the_cache_survives_the_refusal(folder: Path) -> None:
    options = EngineOptions(threads=1, context_length=32)
    engine = LlamaCppDecoder(folder / "qwen2" / "model-f32.gguf", SPECS["qwen2"], options)
    assert engine.context_length == 32
    with pytest.raises(InputError, match="33 positions"):
        engine.prefill([image(33)])
    engine.prefill([image(31)])
    engine.decode(1)
    with pytest.raises(InputError, match="33 positions"):
        engine.decode(1)
    engine.reset(2)
    engine.decode(1)
    engine.close()


def test_longer_context_than_the_model_knows_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="1101"):
        LlamaCppDecoder(folder / "qwen2" / "model-f32.gguf", SPECS["qwen2"], EngineOptions(context_length=LONG + 1))


@pytest.mark.parametrize(
    ("segments", "error"),
    [
        ([], InputError),
        ([ids()], InputError),
        ([ids(1, QWEN2.vocab_size)], InputError),
        ([ids(-1)], InputError),
        ([np.zeros((4, QWEN2.hidden_size + 1), np.float32)], EngineError),
    ],
)
def test_inputs_that_llama_cpp_would_misread_are_refused(
    engine: LlamaCppDecoder, segments: list[Segment], error: type[Exception]
) -> None:
    with pytest.raises(error):
        engine.prefill(segments)
    assert engine.position == 0


def test_token_outside_the_vocabulary_is_an_engine_error(engine: LlamaCppDecoder) -> None:
    engine.prefill([ids(1)])
    with pytest.raises(EngineError):
        engine.decode(QWEN2.vocab_size)
    assert engine.position == 1


@pytest.mark.parametrize("change", [{"vocab_size": 1000}, {"hidden_size": 128}])
def test_file_that_differs_from_the_spec_is_refused(folder: Path, change: dict[str, int]) -> None:
    spec: DecoderSpec = replace(SPECS["qwen2"], **change)  # type: ignore[arg-type]
    with pytest.raises(EngineError, match="spec"):
        LlamaCppDecoder(folder / "qwen2" / "model-f32.gguf", spec, ONE_THREAD)


@pytest.mark.parametrize("content", [b"", b"GGUF", b"not a model" * 100])
def test_file_that_is_no_gguf_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(EngineError, match="GGUF"):
        LlamaCppDecoder(path, QWEN2, ONE_THREAD)


def test_truncated_file_is_refused_with_llama_cpps_reason(folder: Path, tmp_path: Path) -> None:
    whole = (folder / "qwen2" / "model-f32.gguf").read_bytes()
    (tmp_path / "model.gguf").write_bytes(whole[:-1000])
    with pytest.raises(EngineError, match=r"cannot load|too short"):
        LlamaCppDecoder(tmp_path / "model.gguf", SPECS["qwen2"], ONE_THREAD)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError):
        LlamaCppDecoder(tmp_path / "none.gguf", QWEN2, ONE_THREAD)


def test_stats_name_version_and_build_and_nothing_is_printed(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    engine = LlamaCppDecoder(folder / "qwen2" / "model-f32.gguf", SPECS["qwen2"], ONE_THREAD)
    stats = engine.stats()
    engine.close()
    assert "llama-cpp-python" in stats.name
    assert stats.details["threads"] == "1"
    assert "CPU" in stats.details["system"]
    assert capfd.readouterr() == ("", "")
