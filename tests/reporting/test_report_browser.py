"""The report in a browser: small, quick, its table sorted and searched, and no script but ours."""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pages import HOSTILE, K, N

from otlabel import report, sinkhorn_assign
from otlabel.reporting import summary as summaries
from otlabel.reporting.sources import Subject

pytest.importorskip("jinja2")
pytest.importorskip("PIL")
pytest.importorskip("sklearn")


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.parametrize(
    ("n_samples", "n_classes", "megabytes"),
    [(10_000, 200, 5), pytest.param(100_000, 1000, 20, marks=pytest.mark.slow)],
    ids=["10k", "100k"],
)
def test_page_is_small_and_quick(n_samples: int, n_classes: int, megabytes: int) -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, n_classes, n_samples)
    scores = rng.standard_normal((n_samples, n_classes), np.float32)
    scores[np.arange(n_samples), truth] += 3
    noise = rng.integers(0, 256, (1000, 3, 64, 64), dtype=np.uint8)  # nothing is larger
    images = [noise[i % 1000] for i in range(n_samples)]
    result = sinkhorn_assign(scores)
    started = time.perf_counter()
    text = report(result, scores=scores, images=images, truth=truth, names=[f"class {k}" for k in range(n_classes)])
    assert time.perf_counter() - started < 30
    assert len(text.encode()) < megabytes * 1e6


class Browser:
    """Chromium without a window, led by its developer tools' protocol over a pipe: nothing listens on a port."""

    def __init__(self, profile: Path) -> None:
        flags = (
            "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
            f"--disable-component-update --disable-sync --remote-debugging-pipe --user-data-dir={profile}"
        )
        theirs_in, self._in = os.pipe()
        self._out, theirs_out = os.pipe()
        # It reads from 3 and writes to 4.
        start = f'exec "$0" "$@" 3<&{theirs_in} 4>&{theirs_out}'
        self._process = subprocess.Popen(
            ["bash", "-c", start, str(CHROMIUM), *flags.split(), "about:blank"],
            pass_fds=(theirs_in, theirs_out),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._rest, self._n_sent, self._session = b"", 0, {}
        self._events: list[dict[str, Any]] = []
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self._session = {"sessionId": self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Page", "Runtime", "Log"):
            self(f"{domain}.enable")

    def __call__(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and wait for what comes of it."""
        self._n_sent += 1
        message = {"id": self._n_sent, "method": method, "params": parameters, **self._session}
        os.write(self._in, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._n_sent:
                assert "error" not in answer, answer
                return answer["result"]
            self._events.append(answer)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            assert select.select([self._out], [], [], 60)[0], "the browser is silent"
            more = os.read(self._out, 1 << 16)
            assert more, "the browser has ended"
            self._rest += more
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def open(self, path: Path, width: int = 1400, scheme: str = "light") -> None:
        """Show a page and wait until it is there."""
        self("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 500)
        self("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self._events.clear()
        self("Page.navigate", url=path.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self._events):
            self._events.append(self._next())

    def value(self, script: str) -> Any:
        """What an expression is on the page."""
        found = self("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def click(self, selector: str, number: int = 0) -> None:
        """Press and release the mouse in the middle of an element, wherever that is and whatever lies over it."""
        element = f"document.querySelectorAll({json.dumps(selector)})[{number}]"
        box = self.value(f"{element}.scrollIntoView({{block: 'center'}}), {element}.getBoundingClientRect().toJSON()")
        at = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2, "button": "left", "clickCount": 1}
        for kind in ("mousePressed", "mouseReleased"):
            self("Input.dispatchMouseEvent", type=kind, **at)

    def press(self, *keys: str) -> None:
        """Type on the keyboard, into whatever has the focus."""
        codes = {"Backspace": 8, "Enter": 13, "Tab": 9}
        for key in keys:
            more = {"windowsVirtualKeyCode": codes[key]} if key in codes else {}
            text = {"text": "\r" if key == "Enter" else key} if len(key) == 1 or key == "Enter" else {}
            self("Input.dispatchKeyEvent", type="keyDown", key=key, **more, **text)
            self("Input.dispatchKeyEvent", type="keyUp", key=key, **more)

    @property
    def complaints(self) -> list[dict[str, Any]]:
        """Exceptions, refusals and whatever else the console shows of this page."""
        self.value("0")  # so that all events before it are there
        kinds = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
        return [event for event in self._events if event["method"] in kinds]

    def close(self) -> None:
        """End it."""
        self._session = {}
        self("Browser.close")
        self._process.wait(30)
        os.close(self._in)
        os.close(self._out)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed: apt-get install chromium")
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


def shown_rows(browser: Browser) -> str:
    """First cells of the rows of the table that are to be seen, from the top."""
    script = """Array.from(document.querySelectorAll("#classes tbody tr"))
        .filter((row) => row.offsetHeight > 0)
        .sort((one, two) => one.getBoundingClientRect().top - two.getBoundingClientRect().top)
        .map((row) => row.cells[0].textContent).join("")"""
    return browser.value(script)


@pytest.mark.parametrize("page", ["plain", "hostile"])
def test_browser_shows_the_page_and_runs_only_our_script(browser, data, tmp_path: Path, page: str) -> None:
    names = [f"class {k}" for k in range(K)] if page == "plain" else list(HOSTILE[:K])
    report(
        data["labels"], scores=data["scores"], truth=data["truth"], texts=names * (N // K), names=names,
        title=names[0].replace("alert(1)", "document.title = 'overrun'"), path=tmp_path / "page.html",
    )  # fmt: skip
    browser.open(tmp_path / "page.html")
    assert browser.value("document.querySelectorAll('th button').length") == 9  # what the script adds
    assert browser.value("document.getElementById('search').offsetHeight > 0")
    assert browser.value("document.title !== 'overrun'")
    assert browser.complaints == []


def test_browser_refuses_any_other_script(browser, data, tmp_path: Path) -> None:
    """So that no complaints mean something."""
    page = report(data["labels"]).replace("</body>", "<script>document.title = 'overrun'</script></body>")
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    browser.open(tmp_path / "page.html")
    assert browser.value("document.title") == "Labels"
    assert "Content Security Policy" in json.dumps(browser.complaints)


@pytest.mark.parametrize("width", [1400, 400])
def test_page_fits_in_light_and_dark(browser, run: Path, tmp_path: Path, width: int) -> None:
    path = tmp_path / "page.html"
    report(run, names=[f"a name of a class that is rather long {k}" for k in range(10)], path=path)
    colours = {}
    for scheme in ("light", "dark"):
        browser.open(path, width, scheme)
        assert browser.value("innerWidth") == width
        assert browser.value("document.documentElement.scrollWidth") <= width
        wide = """Array.from(document.querySelectorAll("body *:not(.scroll *):not(svg *)"))
            .filter((one) => one.getBoundingClientRect().right > innerWidth + 1).map((one) => one.outerHTML)"""
        assert browser.value(wide) == []
        style = "getComputedStyle(document.body)"
        colours[scheme] = [
            sum(map(int, re.findall(r"\d+", browser.value(f"{style}.{name}"))[:3]))
            for name in ("backgroundColor", "color")
        ]
        assert browser.complaints == []
    assert colours["light"][0] > 600 > 200 > colours["light"][1]  # dark on bright
    assert colours["dark"][0] < 100 < 600 < colours["dark"][1]


def test_table_is_sorted_by_clicks_and_searched_by_typing(browser, data, tmp_path: Path) -> None:
    names = ["one", "two", "three", "two and a half", "five"]
    report(data["labels"], scores=data["scores"], names=names, path=tmp_path / "page.html")
    browser.open(tmp_path / "page.html")
    confidence = summaries.summarise(Subject(data["labels"], scores=data["scores"])).confidences
    assert confidence is not None
    upward = "".join(map(str, np.argsort(confidence)))
    assert shown_rows(browser) == "01234"
    browser.click("th button", 4)
    assert shown_rows(browser) == upward[::-1]
    browser.click("th button", 4)
    assert shown_rows(browser) == upward
    assert browser.value("document.querySelectorAll('th')[4].getAttribute('aria-sort')") == "ascending"
    browser.click("th button", 1)
    browser.press("Enter")  # the button has the focus: the keyboard does as well
    assert shown_rows(browser) == "40213"
    browser.click("#search")
    browser.press(*"TWO")
    assert shown_rows(browser) == "13"
    browser.click("th button", 0)
    assert shown_rows(browser) == "31"
    browser.click("#search")
    browser.press(*" a")
    assert shown_rows(browser) == "3"
    browser.press(*["Backspace"] * 5)
    assert shown_rows(browser) == "43210"
    browser.press(*"zz")
    assert shown_rows(browser) == ""
    assert browser.complaints == []


def test_all_classes_are_reached_page_by_page(browser, tmp_path: Path) -> None:
    labels = np.repeat(np.arange(120), np.arange(1, 121))
    report(labels, images=np.zeros((len(labels), 4, 4), np.uint8), path=tmp_path / "page.html")
    browser.open(tmp_path / "page.html", 400)

    def shown() -> tuple[str, list[int]]:
        rows = [*range(120)]
        numbers = browser.value("""Array.from(document.querySelectorAll("#classes tbody tr"))
            .filter((row) => row.offsetHeight > 0).map((row) => Number(row.cells[0].textContent))""")
        assert set(numbers) <= set(rows)
        return browser.value("document.getElementById('place').textContent"), numbers

    assert shown() == ("1 to 50 of 120 classes", [*range(50)])
    for place, numbers in (
        ("51 to 100 of 120 classes", [*range(50, 100)]),
        ("101 to 120 of 120 classes", [*range(100, 120)]),
        ("101 to 120 of 120 classes", [*range(100, 120)]),  # the end
    ):
        browser.click("#turn button", 1)
        assert shown() == (place, numbers)
    browser.click("#turn button", 0)
    assert shown()[1] == [*range(50, 100)]
    browser.click("th button", 1)  # by size: the largest first, from the first page on
    assert shown() == ("1 to 50 of 120 classes", [*range(119, 69, -1)])
    browser.click("#search")
    browser.press(*"119")
    assert shown()[1] == [119, 118]  # of number 119, and of 119 samples
    assert browser.value("document.getElementById('turn').offsetHeight") == 0
    assert browser.complaints == []
