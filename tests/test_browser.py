"""Built pages in a real browser: nothing fails, nothing is asked of another host, math is typeset, widgets live.

Chromium is driven over WebDriver's plain HTTP, so nothing but chromium and chromedriver is needed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from book import checks

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver", path=os.pathsep.join([os.environ.get("CHROMEWEBDRIVER", ""), os.environ["PATH"]]))
FLAGS = [
    *["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"],
    *["--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--window-size=1280,900"],
]
ONE_OF_EACH_KIND = (
    "index.html",
    "book/index.html",
    "book/notation.html",
    "book/results.html",
    "book/api.html",
    "book/glossary.html",
    "book/references.html",
    "_modules/ebmlib/samplers.html",
    "notebooks/langevin_toy.html",
    "notebooks/drl_cifar.html",
    "search.html?q=langevin",
)
# Resolves once math, fonts and pictures have arrived, so that late failures are seen too; at the latest after 20 s.
SETTLE = """
const done = arguments[0];
const math = window.MathJax && MathJax.startup ? MathJax.startup.promise : Promise.resolve();
const pictures = [...document.images].map((i) => { i.loading = "eager"; return i.decode().catch(() => 0); });
const arrived = math.catch(() => 0).then(() => Promise.all(pictures)).then(() => document.fonts.ready);
Promise.race([arrived, new Promise((late) => setTimeout(late, 20000))]).then(() => setTimeout(done, 200));
"""
STATE = """
const all = (q) => [...document.querySelectorAll(q)];
return {
  raw: all(".math").filter((m) => !m.querySelector("mjx-container")).map((m) => m.textContent.slice(0, 80)),
  wrong: all("mjx-merror, [data-mjx-error]").map((m) => m.parentElement.textContent.slice(0, 80)),
  pictures: all("img").filter((i) => !i.naturalWidth).map((i) => i.src),
  dead: all(".ebm-playground-static").filter((w) => !w.querySelector("canvas")).length,
  title: document.title,
  text: document.body.innerText,
};
"""


class Browser:
    """A headless Chromium over WebDriver, with its console and its network log."""

    def __init__(self) -> None:
        self.driver = subprocess.Popen(
            [DRIVER, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        started = (re.search(r"successfully on port (\d+)", line) for line in self.driver.stdout)
        self.address = f"http://127.0.0.1:{next(match[1] for match in started if match)}"
        wanted = {
            "goog:chromeOptions": {"binary": CHROMIUM, "args": FLAGS},
            "goog:loggingPrefs": {"performance": "ALL", "browser": "ALL"},
            "timeouts": {"script": 180_000, "pageLoad": 180_000},
        }
        session = self._ask("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self.session = f"/session/{session['sessionId']}"

    def _ask(self, method: str, path: str, body: dict | None = None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, {"Content-Type": "application/json"}, method=method)
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with direct.open(request, timeout=240) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(json.load(error)["value"]["message"]) from None

    def open(self, address: str, width: int = 1280, height: int = 900) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        command = {"cmd": "Emulation.setDeviceMetricsOverride", "params": size}
        self._ask("POST", f"{self.session}/goog/cdp/execute", command)
        self._ask("POST", f"{self.session}/url", {"url": address})
        self._ask("POST", f"{self.session}/execute/async", {"script": SETTLE, "args": []})

    def run(self, script: str):
        return self._ask("POST", f"{self.session}/execute/sync", {"script": script, "args": []})

    def console_errors(self) -> list[str]:
        entries = self._ask("POST", f"{self.session}/se/log", {"type": "browser"})
        return [entry["message"] for entry in entries if entry["level"] == "SEVERE"]

    def network(self) -> tuple[list[str], list[str]]:
        """(addresses asked for, addresses that failed) since the last call."""
        asked, failed, names = [], [], {}
        for entry in self._ask("POST", f"{self.session}/se/log", {"type": "performance"}):
            event = json.loads(entry["message"])["message"]
            kind, values = event["method"], event["params"]
            if kind == "Network.requestWillBeSent":
                names[values["requestId"]] = values["request"]["url"]
                asked.append(values["request"]["url"])
            elif kind == "Network.responseReceived" and values["response"]["status"] >= 400:
                failed.append(f"{values['response']['status']} {values['response']['url']}")
            elif kind == "Network.loadingFailed" and not values.get("canceled"):
                failed.append(f"{values.get('errorText')} {names.get(values['requestId'])}")
        return asked, failed

    def close(self) -> None:
        self._ask("DELETE", self.session)
        self.driver.terminate()
        self.driver.wait(10)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("Chromium or chromedriver is not installed, so no page was opened in a browser")
    browser = Browser()
    yield browser
    browser.close()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args) -> None:
        pass


@pytest.fixture(scope="module")
def site(smoke_book: Path) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(smoke_book))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def complaints(browser: Browser, site: str, page: str) -> list[str]:
    """Everything wrong with a page as a browser sees it."""
    browser.open(site + page)
    asked, failed = browser.network()
    state = browser.run(STATE)
    found = [f"console: {message}" for message in browser.console_errors()]
    found += [f"request failed: {address}" for address in failed]
    found += [f"request to another host: {a}" for a in asked if not a.startswith((site, "data:", "blob:", "about:"))]
    found += [f"math not typeset: {text}" for text in state["raw"]]
    found += [f"math with an error: {text}" for text in state["wrong"]]
    found += [f"picture does not load: {address}" for address in state["pictures"]]
    found += [f"{state['dead']} playgrounds do not live"] * bool(state["dead"])
    assert asked, "the network log is empty, so nothing was checked"
    assert state["title"], f"{page} has no title"
    return [f"{page}: {complaint}" for complaint in found]


def test_one_page_of_each_kind(browser: Browser, site: str):
    found = [complaint for page in ONE_OF_EACH_KIND for complaint in complaints(browser, site, page)]
    assert not found, "\n".join(found)


def test_the_checks_see_what_they_look_for(browser: Browser, tmp_path: Path):
    broken = '<title>x</title><img src="gone.png"><span class="math">\\(x\\)</span><script>missing()</script>'
    (tmp_path / "x.html").write_text(broken + '<img src="http://localhost:9/outside.png">')
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        found = "\n".join(complaints(browser, f"http://127.0.0.1:{server.server_port}/", "x.html"))
        server.shutdown()
    for word in ("missing is not defined", "404", "another host: http://localhost:9", "not typeset", "does not load"):
        assert word in found


def test_search_finds_pages_without_a_server_of_its_own(browser: Browser, site: str):
    browser.open(site + "search.html?q=langevin")
    hits = 0
    for _ in range(40):  # the index is loaded and ranked after the page
        hits = browser.run("return document.querySelectorAll('#search-results li').length")
        if hits:
            break
        time.sleep(0.25)
    assert hits >= 1


@pytest.mark.slow
def test_every_page(browser: Browser, site: str, smoke_book: Path):
    pages = [str(path.relative_to(smoke_book)) for path in checks.html_pages(smoke_book)]
    found = [complaint for page in pages for complaint in complaints(browser, site, page)]
    assert not found, "\n".join(found)


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_no_page_scrolls_sideways(browser: Browser, site: str, smoke_book: Path, width: int):
    wide = []
    for path in checks.html_pages(smoke_book):
        browser.open(site + str(path.relative_to(smoke_book)), width=width)
        over = browser.run("return document.documentElement.scrollWidth - document.documentElement.clientWidth")
        if over > 0:
            wide.append(f"{path.relative_to(smoke_book)}: {over} px too wide at {width}")
    assert not wide, "\n".join(wide)
