"""Peers are measured by turns, those that fail are rows with the reason, and ratios have the right sense."""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from made_reports import MACHINE
from tiny import tiny_bundle, tiny_model

from edgevlm.bench.render.table import Table
from edgevlm.bench.suite import genai, peer_runs
from edgevlm.bench.suite.decoder_rounds import prompt
from edgevlm.bench.suite.peer_report import PeerReport, Result, figures, ratios, render
from edgevlm.bench.suite.peer_runs import Measured, Work
from edgevlm.bench.suite.peers import Peer, joined, measure
from edgevlm.child import Json
from edgevlm.errors import InputError
from edgevlm.models import load
from edgevlm.zoo.synth import synth

WORK = Work(threads=1, context=64, positions=9, rounds=2, steps=3)
OURS = Measured(
    load=[500, 400],
    preprocess=[1, 2, 3],
    vision=[10, 20, 30],
    prefill=[100, 200, 300],
    first_decode=[1, 1, 1],
    decode=[20, 20, 50],
    positions=9,
    peak_rss_bytes=100_000_000,
)
THEIRS = Measured(load=[800], prefill=[100], decode=[40, 40, 40], peak_rss_bytes=250_000_000)


def peer(name: str, function: str, /, **arguments: Json) -> Peer:
    """A row that runs a function of `peer_fakes`."""
    return Peer(name, "About.", f"peer_fakes:{function}", arguments, against="" if name == "ours" else "ours")


def unbuildable() -> dict[str, Json]:
    """What a builder that fails raises."""
    raise subprocess.CalledProcessError(1, "builder", stderr="line\nno such architecture\n")


def unreadable() -> dict[str, Json]:
    """What a missing file raises."""
    raise InputError("there is no such file", "model.gguf")


def cells(table: Table, name: str) -> dict[str, str]:
    """The row of that name by its headers."""
    (row,) = (row for row in table.rows if row[0].text == name)
    return dict(zip(table.headers, map(str, row), strict=True))


def report(*results: Result) -> PeerReport:
    return PeerReport(
        environment=MACHINE, machine_class="acme-8c", model="a model", work=WORK, turns=2, results=list(results)
    )


def result(name: str, measured: Measured | None, against: str = "", failure: str = "") -> Result:
    return Result(name=name, about="About.", against=against, failure=failure, measured=measured)


def test_peers_take_turns_and_have_prompts_as_long_as_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    log = str(tmp_path / "log")
    rows = [peer("ours", "scripted", log=log, name="ours", positions=33)]
    rows += [peer("theirs", "scripted", log=log, name="theirs", positions=33), peer("broken", "crashing")]
    told: list[str] = []
    ours, theirs, broken = measure(rows, WORK, 2, told.append)
    assert Path(log).read_text().split("\n") == ["ours 9", "theirs 33", "ours 33", "theirs 33", ""]
    assert [line for line in told if "broken" in line] == ["turn 1 of 2: broken"]
    assert ours.measured is not None
    assert theirs.measured is not None
    assert ours.measured.load == theirs.measured.load == [1, 1]
    assert ours.measured.peak_rss_bytes > 1e6
    assert broken.measured is None
    assert "SIGSEGV" in broken.failure


def test_what_is_missing_or_cannot_be_made_is_a_row_with_the_reason() -> None:
    missing = Peer("missing", "", "nowhere:nothing", {}, needs=("a_library_that_nobody_has",))
    broken = Peer("broken", "", "nowhere:nothing", {}, prepare=unbuildable)
    absent = Peer("absent", "", "nowhere:nothing", {}, prepare=unreadable)
    found = measure([missing, broken, absent], WORK, 1, lambda line: pytest.fail(f"was run: {line}"))
    assert [each.failure for each in found] == [
        "a_library_that_nobody_has is not installed",
        "cannot be built: no such architecture",
        "there is no such file",
    ]


def test_figures_are_medians_and_the_least_load() -> None:
    ours = cells(figures(report(result("ours", OURS))), "ours")
    assert ours == {
        "row": "ours",
        "load (s)": "0.40",
        "preprocess (ms)": "2.0",
        "vision (ms)": "20.0",
        "prefill (ms)": "200.0",
        "first token (ms)": "1.0",
        "TTFT (ms)": "223",
        "tokens/s": "50.0",
        "peak memory (MB)": "100",
    }


def test_ratios_above_one_are_in_our_favour() -> None:
    rows = ratios(report(result("ours", OURS), result("theirs", THEIRS, "ours"), result("gone", None, "ours", "why")))
    theirs = cells(rows, "theirs")
    assert (theirs["load"], theirs["prefill"], theirs["tokens/s"], theirs["peak memory"]) == (
        *("2.00", "0.50", "2.00"),
        "2.50",
    )
    assert theirs["vision"] == "n/a"
    assert cells(rows, "gone")["prefill"] == "n/a"
    assert len(rows.rows) == 2


def test_a_part_has_no_ttft_and_a_failure_its_reason_in_the_page() -> None:
    made = report(result("ours", OURS), result("theirs", THEIRS, "ours"), result("gone", None, "ours", "it <crashed>"))
    assert cells(figures(made), "theirs")["TTFT (ms)"] == "n/a"
    page = render(made)
    assert "it \\<crashed\\>" in page
    assert "acme-8c" in page
    assert PeerReport.model_validate_json(made.model_dump_json()) == made


def test_processes_are_joined_to_one_sample() -> None:
    both = joined([OURS, OURS.model_copy(update={"load": [300], "peak_rss_bytes": 200_000_000})])
    assert both.load == [500, 400, 300]
    assert both.prefill == OURS.prefill * 2
    assert both.decode == OURS.decode * 2
    assert both.peak_rss_bytes == 200_000_000


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny one in Apple's layout, with its decoder as a Qwen2 beside it."""
    folder = tmp_path_factory.mktemp("peers")
    synth("fastvlm-0.5b", folder / "model", tiny=True)
    genai.write_qwen2(folder / "model", load(folder / "model").spec.decoder, folder / "qwen2")
    return folder


def test_transformers_gets_the_weights_that_ours_has(checkpoint: Path) -> None:
    """Otherwise the peers would not do the same work."""
    decoder = load(checkpoint / "model").decoder.float()
    theirs = transformers.Qwen2ForCausalLM.from_pretrained(checkpoint / "qwen2", dtype=torch.float32)
    ids = torch.from_numpy(prompt(9).astype(np.int64))[None]
    with torch.inference_mode():
        expected = theirs(ids).logits[0, -1]
        ours = decoder(decoder.embed_tokens(ids), torch.arange(9)[None])[0][0, -1]
    assert expected.std() > 0.1
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


def test_every_peer_does_the_rounds_it_is_asked_for(checkpoint: Path, tmp_path: Path) -> None:
    bundle, work = str(tiny_bundle(tiny_model(), tmp_path / "bundle").path), WORK.model_dump()
    qwen2, model = str(checkpoint / "qwen2"), str(checkpoint / "model")
    told: list[Json] = []
    decoders = [
        peer_runs.edgevlm_decoder(told.append, work, bundle, ["onnxruntime"]),
        peer_runs.transformers_decoder(told.append, work, qwen2, "bfloat16"),
    ]
    visions = [
        peer_runs.edgevlm_vision(told.append, work, bundle, ["not_there"]),
        peer_runs.openvino_vision(told.append, work, bundle),
        peer_runs.onnxruntime_vision(told.append, work, bundle),
        peer_runs.torch_vision(told.append, work, model, "float32"),
    ]
    for value in decoders:
        took = Measured.model_validate(value)
        assert (len(took.load), len(took.prefill), len(took.decode), took.positions) == (1, 2, 6, 9)
        assert not took.vision
    for value in visions:
        took = Measured.model_validate(value)
        assert (len(took.load), len(took.vision), len(took.decode)) == (1, 2, 0)
    assert told == [os.getpid(), "round", "round", "round"] * 6


def test_a_session_is_timed_in_all_stages(tmp_path: Path) -> None:
    bundle = tiny_bundle(tiny_model(), tmp_path / "bundle")
    work = WORK.model_copy(update={"context": 256})
    took = Measured.model_validate(peer_runs.edgevlm_whole(lambda _: None, work.model_dump(), str(bundle.path), []))
    stages = (took.preprocess, took.vision, took.prefill, took.first_decode)
    assert [len(stage) for stage in stages] == [2, 2, 2, 2]
    assert len(took.decode) == 6
    assert took.positions > bundle.spec.vision.image_tokens


def test_no_round_starts_once_the_time_is_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU without bfloat16 takes minutes an image: the one that would only warm it up is the sample then."""
    monkeypatch.setattr(peer_runs, "ENOUGH_S", 0.0)
    bundle = tiny_bundle(tiny_model(), tmp_path / "bundle")
    vision = peer_runs.onnxruntime_vision(lambda _: None, WORK.model_dump(), str(bundle.path))
    decoder = peer_runs.edgevlm_decoder(lambda _: None, WORK.model_dump(), str(bundle.path), [])
    assert (len(vision["vision"]), len(decoder["prefill"]), len(decoder["decode"])) == (1, 1, 3)
