"""TinyGPT-V through the whole flow: exported in every precision, verified, and answering like the reference."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tinygptv_reference import Reference

import edgevlm
from edgevlm import pipeline
from edgevlm.cli import main
from edgevlm.errors import UnsupportedError
from edgevlm.models.checkpoint import Checkpoint
from edgevlm.preprocess import preprocess
from edgevlm.prompt import Message, PromptFormatter
from edgevlm.recipe import Recipe, VerifyThresholds
from edgevlm.tokenizer import Tokenizer

IMAGE = -200
QUESTION = "What colour is the circle?"


def silent(_done: float, _total: float, _what: str) -> None:
    """A progress nobody watches."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tinygptv") / "checkpoint"
    Reference().write(folder)
    return folder


@pytest.fixture(scope="module")
def exact(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle in float32."""
    out = tmp_path_factory.mktemp("bundles") / "fp32"
    pipeline.compile_recipe(Recipe(model=str(checkpoint), precision="fp32"), out, progress=silent)
    return out


def picture(seed: int, height: int, width: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Blocks of random colours, which resizing keeps."""
    blocks = np.random.default_rng(seed).integers(0, 256, (height // 20, width // 20, 3), np.uint8)
    return blocks.repeat(20, axis=0).repeat(20, axis=1)


@torch.no_grad()
def test_the_bundle_answers_with_the_tokens_of_the_reference(checkpoint: Path, exact: Path) -> None:
    """Portrait and landscape, through a session; the reference generates with transformers."""
    reference = Reference()
    answers = set()
    with edgevlm.load(exact) as session:
        spec = session.spec
        formatter = PromptFormatter(spec.prompt, Tokenizer(checkpoint / "phi-2" / "tokenizer.json"))
        ids = formatter.start([Message("user", QUESTION, 1)])
        for seed, shape in enumerate([(80, 40), (60, 120), (100, 100)]):
            image = picture(seed, *shape)
            answer = session.generate(image, QUESTION, max_tokens=12, ignore_eos=True)
            pixels = torch.from_numpy(preprocess(image, spec.preprocess))
            embeddings = reference.embeddings(ids, pixels, IMAGE)
            expected = reference.phi.generate(
                inputs_embeds=embeddings,
                attention_mask=torch.ones(embeddings.shape[:2], dtype=torch.long),
                max_new_tokens=12,
                min_new_tokens=12,
                do_sample=False,
            )
            assert answer.token_ids == tuple(expected[0].tolist())
            assert answer.stats.image_tokens == 5
            answers.add(answer.token_ids)
    assert len(answers) == 3, "the image decides"


def test_pixels_are_those_of_the_published_processor(exact: Path) -> None:
    """BLIP-2's: resized to a square with Pillow's bicubic filter, then CLIP's mean and deviation."""
    from transformers import BlipImageProcessorPil

    processor = BlipImageProcessorPil(size={"height": 56, "width": 56})
    image = picture(3, 60, 140)
    spec = edgevlm.bundle.open_bundle(exact).spec
    expected = processor(image, return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(preprocess(image, spec.preprocess), expected, atol=1e-5)


@pytest.mark.parametrize(("precision", "vision_precision"), [("fp16", "fp16"), ("int8", "int8"), ("int4", "fp16")])
def test_every_precision_passes_verification(
    precision: Any, vision_precision: Any, checkpoint: Path, tmp_path: Path
) -> None:
    # The likeliest of random logits is not much likelier than the next, and 8 or 4 bits reorder them; cosines hold.
    free = {} if precision == "fp16" else {"top1_agreement": 0, "token_agreement": 0}
    recipe = Recipe(
        model=str(checkpoint),
        precision=precision,
        vision_precision=vision_precision,
        prompt_template="eval_vqa",
        verify=VerifyThresholds(**free),
    )
    bundle = pipeline.compile_recipe(recipe, tmp_path / "out", progress=silent)
    assert all(result.passed for result in bundle.manifest.parity)
    assert "###Human: " in bundle.spec.prompt.chat_template


def test_the_stop_string_ends_an_answer(exact: Path) -> None:
    """`###`, which is no token of its own: an answer that holds it ends before it, unless asked to go on."""
    with edgevlm.load(exact) as session:
        image = picture(0, 80, 40)
        whole = session.generate(image, QUESTION, max_tokens=12, ignore_eos=True)
        assert len(whole.text) > 3
        cut = whole.text[2:4]
        prompt = session.spec.prompt
        object.__setattr__(prompt, "stop_strings", (cut,))
        short = session.generate(image, QUESTION, max_tokens=12)
        assert short.text == whole.text[: whole.text.index(cut)]
        assert short.finish_reason == "stop"
        assert session.generate(image, QUESTION, max_tokens=12, ignore_eos=True).text == whole.text


def test_gguf_is_refused_before_a_weight_is_read(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(_checkpoint: Checkpoint, name: str) -> torch.Tensor:
        raise AssertionError(f"{name} was read")

    monkeypatch.setattr(Checkpoint, "tensor", read)
    with pytest.raises(UnsupportedError, match="no q/k norm and no norm on the attention branch"):
        pipeline.compile_recipe(Recipe(model=str(checkpoint), format="gguf"), tmp_path / "out", progress=silent)
    assert list(tmp_path.iterdir()) == []


def test_bad_sources_end_the_export_with_code_2_and_nothing_written(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "bad"
    shutil.copytree(checkpoint, folder)
    sources = (folder / "edgevlm-sources.yaml").read_text()
    (folder / "edgevlm-sources.yaml").write_text(sources.replace("lora_rank: 4", "lora_rank: 8"))
    with pytest.raises(SystemExit) as caught:
        main(["export", str(folder), "-o", str(tmp_path / "out")])
    assert caught.value.code == 2
    assert "its rank is not 8" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["bad"]
