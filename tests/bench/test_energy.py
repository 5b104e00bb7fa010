"""Energy and heat of a row are those of its answers, of named rails; what was not measured is said once, never zero."""

import io
import json
import re
from xml.etree import ElementTree

import pytest
from bench_bundles import hollow_bundle, settings
from html_page import Page
from jsonschema import Draft202012Validator
from sensor_trees import alone, orin_nano, write

from edgevlm.bench.energy import Metering
from edgevlm.bench.measured import Measured
from edgevlm.bench.metered import Sensor, no_power
from edgevlm.bench.render.console import print_report
from edgevlm.bench.render.energy_table import energy, heat
from edgevlm.bench.render.report_html import render_html
from edgevlm.bench.render.report_markdown import render_markdown
from edgevlm.bench.render.reproduce import facts
from edgevlm.bench.render.timeline import timeline
from edgevlm.bench.report import Report, Row, Sample, report_schema
from edgevlm.bench.sweep import sweep
from edgevlm.targets.sensors.base import About, Reading
from edgevlm.targets.sensors.find import Found
from edgevlm.targets.sensors.log import SensorLog, Track

ORIGIN = 1000.0
#: Of a scripted answer: 2 s up to the first text, then five tokens of 0.4 s; the next image takes half a second.
IMAGE_S, TOKENS, TOKEN_S, BETWEEN_S = 2.0, 5, 0.4, 0.5
ANSWER_S = IMAGE_S + TOKENS * TOKEN_S
IDLE_W, IMAGE_W, TOKEN_W, BETWEEN_W = 4.0, 15.0, 9.0, 30.0
GPU = About("nvml", "GPU boards", ("gpu0",), ("gpu0",), 0.01)


def sample(at_s: float) -> Sample:
    return Sample(
        image="0/1",
        prompt="?",
        preprocess_ms=0,
        vision_ms=1e3 * IMAGE_S,
        prefill_ms=0,
        first_decode_ms=0,
        gaps_ms=[1e3 * TOKEN_S] * TOKENS,
        wall_ms=1e3 * ANSWER_S,
        at_s=at_s,
        image_tokens=1,
        prompt_tokens=2,
        reused_tokens=0,
        output_sha256="",
    )


def measured(count: int = 4) -> Measured:
    found = Measured(origin_s=ORIGIN)
    found.samples.add("cold", sample(0.0))
    for index in range(1, count + 1):
        found.samples.add("steady", sample(index * (ANSWER_S + BETWEEN_S)))
    return found


def power(at_s: float) -> float:
    """What the scripted device draws at an instant of the worker's clock."""
    within = at_s % (ANSWER_S + BETWEEN_S)
    return IMAGE_W if within < IMAGE_S else TOKEN_W if within < ANSWER_S else BETWEEN_W


def running(step_s: float = 0.001, *, counter: bool = False, until: float = 25.0, **reading: object) -> Track:
    """Readings of the whole run."""
    at, readings, joules = [], [], 500.0
    for index in range(round(until / step_s)):
        now = (index + 0.5) * step_s
        joules += power(now) * step_s
        shown = {"joules": {"gpu0": joules}} if counter else {"watts": {"gpu0": power(now)}}
        at.append(ORIGIN + now)
        readings.append(Reading(**{**shown, **reading}))  # type: ignore[arg-type]
    return Track(GPU, tuple(at), tuple(readings))


def resting() -> Track:
    return Track(GPU, (900.0, 901.0), (Reading(watts={"gpu0": IDLE_W}),) * 2)


class Script(SensorLog):
    """A log whose readings are given: first those at rest, then those of the run."""

    def __init__(self, *tracks: Track) -> None:
        super().__init__()
        self._scripts = list(tracks)
        self.found = tuple(Found(track.about.name, "ok", about=track.about) for track in tracks[-1:])

    def tracks(self) -> list[Track]:
        return self._scripts[:1]

    def clear(self) -> None:
        if len(self._scripts) > 1:
            self._scripts.pop(0)

    def wait_until(self, at_s: float, limit_s: float) -> None:
        pass


def metered(track: Track) -> Metering:
    """Metering that rested before, and now sees `track`."""
    log = Script(Track(GPU, (), ()), resting(), track)
    found = Metering(log, idle_s=1e-3)
    found.begin()
    assert log.tracks() == [track]
    return found


@pytest.mark.parametrize("counter", [False, True])
def test_energy_of_answers_is_told_apart_by_stage_and_idle_power_subtracted(counter: bool) -> None:
    seen = metered(running(counter=counter)).observe(measured())
    (meter,) = seen.energy.meters
    image, token = IMAGE_W * IMAGE_S, TOKEN_W * TOKEN_S
    assert meter.method == ("counter" if counter else "trapezoid")
    assert meter.answers == 4
    assert meter.seconds == pytest.approx(4 * ANSWER_S)
    assert meter.per_answer.gross == pytest.approx(image + TOKENS * token, rel=2e-3)
    assert meter.per_answer.net == pytest.approx(image + TOKENS * token - IDLE_W * ANSWER_S, rel=5e-3)
    assert meter.per_image is not None
    assert meter.per_token is not None
    assert (meter.per_image.gross, meter.per_token.gross) == pytest.approx((image, token), rel=5e-3)
    assert meter.per_token.net == pytest.approx(token - IDLE_W * TOKEN_S, rel=1e-2)
    assert (meter.idle_w, meter.mean_w) == pytest.approx((IDLE_W, 12.0), rel=2e-3)
    assert meter.rate_hz == pytest.approx(1000, rel=0.01)
    assert seen.flags == []


def test_stages_shorter_than_two_readings_are_not_told_apart() -> None:
    seen = metered(running(step_s=1.1)).observe(measured())
    (meter,) = seen.energy.meters
    assert (meter.per_image, meter.per_token) == (None, None)
    assert meter.per_answer.gross > 0
    assert [flag.code for flag in seen.flags] == ["short-energy"]


def test_energy_without_idle_power_is_gross_only() -> None:
    log = Script(Track(GPU, (), ()), running())
    found = Metering(log, idle_s=0)
    found.begin()
    (meter,) = found.observe(measured()).energy.meters
    assert (meter.idle_w, meter.per_answer.net) == (None, None)


def test_sensor_lost_in_the_middle_counts_the_answers_before() -> None:
    whole = running(until=12.0)
    lost = Track(whole.about, whole.at_s, whole.readings, "the energy counter of gpu0 started anew")
    seen = metered(lost).observe(measured())
    (meter,) = seen.energy.meters
    assert meter.answers == 1
    assert meter.per_answer.gross == pytest.approx(IMAGE_W * IMAGE_S + TOKENS * TOKEN_W * TOKEN_S, rel=5e-3)
    assert [flag.code for flag in seen.flags] == ["sensor-lost", "short-energy"]
    assert "started anew" in seen.flags[0].text


@pytest.mark.parametrize(
    ("track", "reason"),
    [
        (Track(GPU, (), (), "NVML: GPU is lost"), "nvml: NVML: GPU is lost"),
        (running(until=3.0), "nvml showed no power while it answered"),
        (running(0.1, watts={"gpu0": 0.0}), "nvml showed no power while it answered"),
    ],
    ids=["lost-before", "silent", "zero"],
)
def test_no_energy_is_a_reason_and_never_zero(track: Track, reason: str) -> None:
    seen = metered(track).observe(measured())
    assert (seen.energy.meters, seen.energy.reason) == ([], reason)


def test_heat_clocks_and_throttling_are_those_of_the_run() -> None:
    track = running(0.5)
    readings = tuple(
        Reading(
            watts=reading.watts,
            celsius={"edge": 40 + at - ORIGIN, "cool": 30.0},
            megahertz={"gpu0": 2000.0 if at - ORIGIN < 15 else 1500.0},
            throttled=("gpu0: power cap",) if at - ORIGIN > 15 else (),
        )
        for at, reading in zip(track.at_s, track.readings, strict=True)
    )
    seen = metered(Track(GPU, track.at_s, readings)).observe(measured())
    assert seen.heat is not None
    end = 4 * (ANSWER_S + BETWEEN_S) + ANSWER_S
    assert (seen.heat.zone, seen.heat.start_c) == ("nvml edge", 40.25)
    assert seen.heat.max_c == pytest.approx(40 + end, abs=0.5)
    (clock,) = seen.heat.clocks
    assert (clock.median_mhz, clock.min_mhz) == (2000.0, 1500.0)
    (throttle,) = seen.heat.throttled
    assert throttle.share == pytest.approx((end - 15) / (end - ANSWER_S - BETWEEN_S), abs=0.03)
    assert "throttled" in {flag.code for flag in seen.flags}
    units = [(series.name, series.unit) for series in seen.heat.series]
    assert units == [("gpu0", "W"), ("edge", "°C"), ("cool", "°C"), ("gpu0", "MHz")]
    for series in seen.heat.series:
        assert 0 <= series.at_s[0] <= series.at_s[-1] <= end
        assert len(series.at_s) == len(series.values) <= 120


@pytest.fixture(scope="module")
def boards(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """A sweep over two bundles on a made-up board of 6 W, whose sensor goes away under the second one."""
    folder = tmp_path_factory.mktemp("boards")
    thermal = "sys/class/thermal/thermal_zone0"
    write(orin_nano(folder), {f"{thermal}/type": "tj-thermal", f"{thermal}/temp": 50500})
    with pytest.MonkeyPatch.context() as patch:
        alone(patch, folder)
        asked = settings(task=None, idle_s=0.3)
        bundles = [hollow_bundle(folder / name) for name in ("works", "unplug")]
        with SensorLog(folder) as log:
            return sweep(
                bundles, asked, folder / "out", progress=lambda *_: None, worker="bench_fakes:serve", sensors=log
            )


def test_a_sweep_meters_the_board_while_it_works(boards: Report) -> None:
    row = boards.rows[0]
    assert row.energy is not None
    (meter,) = row.energy.meters
    assert (meter.source, meter.rails, meter.answers) == ("ina3221", ["VDD_IN"], 8)
    assert (meter.mean_w, meter.idle_w) == pytest.approx((6.0, 6.0))
    assert meter.per_answer.net == pytest.approx(0, abs=1e-6)
    assert row.latency is not None
    mean_s = sum(each.wall_ms for each in row.latency.steady) / 8e3
    assert meter.per_answer.gross == pytest.approx(6.0 * mean_s, rel=1e-3)
    assert "whole module" in meter.covers


def test_sensors_that_vanish_leave_the_run_alone(boards: Report) -> None:
    row = boards.rows[1]
    assert row.status == "ok"
    assert row.latency is not None
    assert row.latency.ttft_steady_ms.n == 8
    assert row.energy is not None
    assert (row.energy.meters, row.energy.reason) == ([], "ina3221: in1_input is not there")
    assert "sensor-lost" in {flag.code for flag in row.flags}


def test_metered_report_fits_the_schema_and_names_its_sensors(boards: Report) -> None:
    data = json.loads(boards.model_dump_json())
    assert not list(Draft202012Validator(report_schema()).iter_errors(data))
    assert Report.model_validate(data) == boards
    states = {each.name: (each.state, each.power) for each in boards.sensors}
    assert states["ina3221"] == ("ok", True)
    assert states["linux"] == ("ok", False)
    assert states["rapl"] == ("absent", False)


def test_power_mode_and_sensors_stand_among_the_facts(boards: Report) -> None:
    machine = boards.environment.model_copy(update={"power_mode": "25W (1)"})
    told = dict(facts(boards.model_copy(update={"environment": machine})))
    assert told["Power mode"] == "25W (1)"
    assert told["Sensors"].startswith("ina3221: the whole module (VDD_IN); linux: temperatures and clocks; ")
    assert "rapl absent" in told["Sensors"]


def rendered(report: Report) -> tuple[str, str, str]:
    stream = io.StringIO()
    print_report(report, stream)
    return stream.getvalue(), render_markdown(report).replace("\\", ""), Page(render_html(report)).text


def test_every_rendering_names_rail_and_reason(boards: Report) -> None:
    for text in rendered(boards):
        assert "ina3221 VDD_IN" in text
        assert text.count("energy not measured: ina3221: in1_input is not there") == 1
    (console, *pages) = rendered(boards)
    assert "energy/answer" in console
    for text in pages:
        assert "Heat and clocks" in text
        assert "less the power of the idle machine" in text
    assert not Page(render_html(boards)).misnested


def without_sensors(report: Report) -> Report:
    """As on a machine without any sensor."""

    def bare(row: Row) -> Row:
        assert row.energy is not None
        gone = row.energy.model_copy(update={"meters": [], "reason": "no nvml, rapl here"})
        return row.model_copy(update={"energy": gone, "heat": None, "flags": []})

    return report.model_copy(update={"rows": [bare(row) for row in report.rows], "sensors": []})


def test_what_never_measures_power_is_no_reason_for_its_lack() -> None:
    sensors = [
        Sensor(name="nvml", state="absent", detail="no driver", power=False),
        Sensor(name="rapl", state="forbidden", detail="needs root", power=False),
        Sensor(name="linux", state="absent", detail="no temperatures", power=False),
    ]
    assert no_power(sensors) == "rapl: needs root; no nvml here"


def test_absent_sensors_are_said_once_and_leave_no_column(boards: Report) -> None:
    report = without_sensors(boards)
    for text in rendered(report):
        assert text.count("not measured: no nvml, rapl here") == 1
        assert not re.search(r"0(\.0+)? m?J\b", text)
        assert "energy/answer" not in text
    assert (energy(report).rows, heat(report).rows) == ((), ())


@pytest.mark.parametrize("width", [358.0, 1080.0])
def test_timeline_has_every_answer_and_what_was_read_under_it(boards: Report, width: float) -> None:
    row = boards.rows[0]
    assert row.latency is not None
    root = ElementTree.fromstring(timeline(row, width))
    dots = [element for element in root.iter() if element.tag.endswith("circle")]
    samples = [row.latency.cold, *row.latency.warmup, *row.latency.steady]
    assert [float(dot.attrib["data-value"]) for dot in dots] == [each.tpot_ms for each in samples]
    across = [float(dot.attrib["cx"]) for dot in dots]
    assert across == sorted(across)
    assert 0 < across[0] <= across[-1] < width
    titles = [element.text or "" for element in root.iter() if element.tag.endswith("text")]
    assert "ina3221 VDD_IN, W" in titles
