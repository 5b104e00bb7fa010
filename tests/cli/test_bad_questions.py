"""Questions that a bundle cannot take, and bundles that contradict themselves: three lines, exit code 2."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from refusals import Refused, refusal

from edgevlm.bundle import MANIFEST
from edgevlm.cli import main
from edgevlm.zoo.synth import synth


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    return refusal(capsys)


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of LLaVA-Mini: one image a conversation, videos, a fusion."""
    folder = tmp_path_factory.mktemp("mini")
    synth("llava-mini-qwen-0.5b", folder / "checkpoint", tiny=True)
    with pytest.raises(SystemExit) as caught:
        main(["export", str(folder / "checkpoint"), "-o", str(folder / "bundle"), "--precision", "fp32"])
    assert caught.value.code == 0
    Image.new("RGB", (40, 30), (200, 30, 30)).save(folder / "image.png")
    return folder


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--video"], "the video has no frames"),
        (["--image", "image.png", "--image", "image.png"], "2 images, but this model's template takes 1"),
        (["--video", *(["--image", "image.png"] * 2100)], "positions, the context has 2048"),
    ],
    ids=["no-frames", "two-images", "long-video"],
)
def test_images_and_videos_that_do_not_fit(
    flags: list[str], message: str, refused: Refused, mini: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(mini)
    before = sorted(path.name for path in mini.rglob("*"))
    assert message in "\n".join(refused("run", "bundle", "--prompt", "What?", *flags))
    assert sorted(path.name for path in mini.rglob("*")) == before


@pytest.mark.parametrize("engine", ["auto", "onnxruntime", "openvino"])
def test_a_bundle_whose_graph_makes_other_image_tokens(
    engine: str, refused: Refused, mini: Path, tmp_path: Path
) -> None:
    bundle = Path(shutil.copytree(mini / "bundle", tmp_path / "bundle"))
    data = json.loads((bundle / MANIFEST).read_text())
    made = data["spec"]["vision"]["image_tokens"]
    data["spec"]["vision"]["image_tokens"] = made - 1
    (bundle / MANIFEST).write_text(json.dumps(data))
    question = ["--image", mini / "image.png", "--prompt", "What?", "--vision-engine", engine]
    assert f"the vision graph makes {made} image tokens" in refused("run", bundle, *question)[0]


def test_a_template_that_loses_the_image(refused: Refused, mini: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(mini / "bundle", tmp_path / "bundle"))
    data = json.loads((bundle / MANIFEST).read_text())
    data["spec"]["prompt"]["chat_template"] = "{% for message in messages %}{{ message['role'] }}{% endfor %}"
    (bundle / MANIFEST).write_text(json.dumps(data))
    assert (
        "does not keep the image's place"
        in refused("run", bundle, "--image", mini / "image.png", "--prompt", "What?")[0]
    )
