"""The page in a real browser: nothing is complained about or fetched, sorting works, phones and print have room."""

import html
import http.server
import json
import re
import shutil
import subprocess
import threading
from functools import partial
from pathlib import Path

import pytest
from made_reports import accuracy, report, row, save

from edgevlm.bench.compare import compare
from edgevlm.bench.fleet import merge
from edgevlm.bench.reading import read_report
from edgevlm.bench.render.comparison import render_html as render_comparison
from edgevlm.bench.render.fleet import render_html as render_fleet
from edgevlm.bench.render.report_html import render_html

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-headless-shell", "google-chrome"))), "")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no chromium on this machine")

#: Put behind the page's own script: presses the buttons and writes what it sees into the title.
PROBE = """
const seen = {};
const table = document.querySelector("table.sortable");
const column = Array.from(table.tHead.rows[0].cells).findIndex((cell) => cell.textContent.startsWith("size"));
const head = table.tHead.rows[0].cells[column];
const names = () => Array.from(table.tBodies[0].rows).map((row) => row.cells[0].firstChild.textContent);
const steps = [];
const note = () => steps.push([head.getAttribute("aria-sort"), names()]);
note();
for (let i = 0; i < 3; i += 1) { head.querySelector("button").click(); note(); }
head.querySelector("button").focus();
seen.focused = document.activeElement.tagName;
seen.steps = steps;
seen.wider = document.documentElement.scrollWidth - document.documentElement.clientWidth;
seen.shown = Array.from(document.querySelectorAll("figure svg")).filter((svg) => svg.getClientRects().length).length;
seen.figures = document.querySelectorAll("figure").length;
seen.headings = Array.from(document.querySelectorAll("h2")).map((each) => each.textContent);
seen.page = getComputedStyle(document.body).backgroundColor;
document.title = "PROBE" + JSON.stringify(seen);
"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the pages: as they are, and with the probe in place of the policy that would forbid it."""
    folder = tmp_path_factory.mktemp("pages")
    sizes = {"middle": 2_000_000, "large": 10_000_000, "small": 900_000}
    rows = [
        row(name, seed=seed, total_bytes=size, accuracy=accuracy(80 + seed, 100))
        for seed, (name, size) in enumerate(sizes.items())
    ]
    failed = row("failed", n=0, total_bytes=None, status="failed", reason="SIGSEGV", memory=None)
    old, new = save(folder / "old", report(*rows)), save(folder / "new", report(*rows[:2], failed))
    fleet = merge([read_report(old), read_report(new)], ("a board", "a phone"))
    made = {
        "fleet": render_fleet(fleet),
        "report": render_html(report(*rows, failed)),
        "comparison": render_comparison(compare(read_report(old), read_report(new), tolerance=0.05, margin=0.02)),
    }
    for name, text in made.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
        probed = re.sub(r"<meta http-equiv[^>]*>", "", text).replace("</body>", f"<script>{PROBE}</script></body>")
        (folder / f"{name}-probed.html").write_text(probed, encoding="utf-8")
    return folder


def browse(address: str, profile: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """Open a page with the browser's log on standard error."""
    quiet = ("--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--no-first-run")
    command = [CHROMIUM, *quiet, f"--user-data-dir={profile}", *flags, address]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def probe(page: Path, profile: Path, *flags: str) -> dict[str, object]:
    """What the probe saw."""
    shown = browse(page.as_uri(), profile, "--window-size=1200,900", "--dump-dom", *flags)
    assert "CONSOLE" not in shown.stderr, shown.stderr
    title = re.search(r"<title>PROBE(.*?)</title>", shown.stdout, re.S)
    assert title is not None
    found = json.loads(html.unescape(title[1]))
    assert isinstance(found, dict)
    return found


def test_page_opens_without_complaint_and_fetches_nothing(pages: Path, tmp_path: Path) -> None:
    """With the policy in force the script still runs: buttons stand in the headers."""
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            asked.append(self.path)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(pages)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        for name in ("report", "comparison", "fleet"):
            asked.clear()
            shown = browse(f"http://127.0.0.1:{server.server_port}/{name}.html", tmp_path / "profile", "--dump-dom")
            assert "CONSOLE" not in shown.stderr, shown.stderr
            assert asked == [f"/{name}.html"]
            assert '<th scope="col" class="num"><button type="button">' in shown.stdout
    finally:
        server.shutdown()


def test_headers_sort_up_down_and_back(pages: Path, tmp_path: Path) -> None:
    found = probe(pages / "report-probed.html", tmp_path / "profile")
    assert found["focused"] == "BUTTON"
    assert found["steps"] == [
        [None, ["middle", "large", "small", "failed"]],
        ["ascending", ["small", "middle", "large", "failed"]],
        ["descending", ["large", "middle", "small", "failed"]],
        [None, ["middle", "large", "small", "failed"]],
    ]
    headings = found["headings"]
    assert isinstance(headings, list)
    expected = (
        "Comparison",
        "Where the time to first token goes",
        "Latency",
        "How times are distributed",
        "Accuracy against time to first token",
        "Accuracy against size",
        "Accuracy by question type",
        "To repeat this",
    )
    assert [heading for heading in headings if heading in expected] == list(expected)
    assert found["wider"] == 0


def test_phone_shows_narrow_drawings_and_does_not_scroll_sideways(pages: Path, tmp_path: Path) -> None:
    """A window cannot be that narrow, a frame can."""
    for name in ("report", "comparison", "fleet"):
        inside = html.escape((pages / f"{name}-probed.html").read_text(encoding="utf-8"), quote=True)
        read = "document.title = document.querySelector('iframe').contentDocument.title"
        frame = f'<title></title><iframe width="390" height="800" srcdoc="{inside}" onload="{read}"></iframe>'
        (tmp_path / "phone.html").write_text(f"<!doctype html><meta charset=utf-8>{frame}", encoding="utf-8")
        found = probe(tmp_path / "phone.html", tmp_path / "profile")
        assert found["wider"] == 0
        assert found["shown"] == found["figures"]


def test_page_follows_the_system_into_the_dark(pages: Path, tmp_path: Path) -> None:
    page, profile = pages / "report-probed.html", tmp_path / "profile"
    assert probe(page, profile)["page"] == "rgb(251, 251, 249)"
    assert probe(page, profile, "--blink-settings=preferredColorScheme=0")["page"] == "rgb(21, 23, 26)"


def test_page_prints(pages: Path, tmp_path: Path) -> None:
    browse((pages / "report.html").as_uri(), tmp_path / "profile", f"--print-to-pdf={tmp_path / 'page.pdf'}")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
