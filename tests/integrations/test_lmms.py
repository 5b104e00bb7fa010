"""lmms-eval finds the model through its entry point and gets answers; nothing of it is imported before."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import lmms_interface
import numpy as np
import pytest
from fake_engines import FakeDecoder, fake_session
from lmms_interface import Instance, Registry
from oracle_process import run_oracle
from PIL import Image
from tiny import tiny_bundle, tiny_model

import edgevlm
from edgevlm.errors import InputError, UnsupportedError
from edgevlm.integrations import lmms

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The model as lmms-eval makes it, on a session whose decoder says `It is 42.`"""
    lmms_interface.install(monkeypatch)
    lmms._model_class.cache_clear()
    tokenizer = fake_session(tmp_path)[0].tokenizer
    session = fake_session(tmp_path, FakeDecoder(tokenizer.encode("It is 42. And more")))[0]
    monkeypatch.setattr(lmms, "load", lambda path, **_: session if path == "bundle" else None)
    registry = Registry()
    declared = re.search(
        r'^\[project.entry-points."lmms_eval.models"\]\nedgevlm = "(.+)"$',
        (ROOT / "pyproject.toml").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    assert declared is not None
    registry.load(declared[1])
    cls: Any = registry.get_model_class("edgevlm")
    yield cls(bundle="bundle", batch_size=1, device="cpu")
    lmms._model_class.cache_clear()


def request(question: str, **options: object) -> Instance:
    return Instance((question, dict(options), lambda doc: [doc["image"]], 3, "pope", "test"))


def test_requests_are_answered_with_their_pictures(model: Any) -> None:
    seen: list[tuple[Any, Any]] = []
    generate = model._session.generate

    def noting(*args: Any, **options: Any) -> Any:
        seen.append((args, options))
        return generate(*args, **options)

    model._session.generate = noting
    picture = Image.fromarray(np.full((10, 20, 3), 200, np.uint8))
    model.task_dict = {"pope": {"test": {3: {"image": picture}}}}
    asked = [request("<image>\nWhat?", max_new_tokens=40, until=["And"], temperature=0.7), request("What?", until="42")]
    first, _ = model.generate_until(asked)
    assert first == "It is 42. "
    (args, options), (_, second) = seen
    assert args == ([picture], "What?")
    assert (options["max_tokens"], options["temperature"], options["stop"]) == (40, 0.0, ["And"])
    assert (second["max_tokens"], second["stop"]) == (128, ["42"])


def test_what_is_not_offered_is_refused_by_name(model: Any) -> None:
    with pytest.raises(UnsupportedError, match="log-likelihoods"):
        model.loglikelihood([])
    with pytest.raises(UnsupportedError, match="several rounds"):
        model.generate_until_multi_round([])
    with pytest.raises(InputError, match="unknown model argument 'pretrained'"):
        type(model)(bundle="bundle", pretrained="x")
    with pytest.raises(InputError, match="no bundle"):
        type(model)()


def test_importing_the_plug_in_imports_nothing_of_lmms_eval() -> None:
    code = "import sys, edgevlm.integrations.lmms; sys.exit('lmms_eval' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_real_package_gets_the_answers_of_a_session(tmp_path: Path) -> None:
    """lmms-eval 0.7.3 without its 150 dependencies, of which registry, base class and requests need three."""
    bundle = tiny_bundle(tiny_model(), tmp_path / "bundle")
    picture = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)).save(picture)
    with edgevlm.load(bundle.path, threads=1) as session:
        expected = session.generate(picture, "What?", max_tokens=8).text
    seen = json.loads(run_oracle(Path(__file__).with_name("lmms_oracle.py"), bundle.path, picture, "What?", 8))
    assert len(expected) > 1, "else there is nothing to compare"
    assert seen["whole"] == [expected]
    assert seen["cut"] == [seen["half"]]
    assert seen["class"] == "edgevlm.integrations.lmms.EdgeVLM"
