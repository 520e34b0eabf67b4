"""A real browser for tests: headless Chromium over plain WebDriver, so chromium and chromedriver suffice."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver", path=os.pathsep.join([os.environ.get("CHROMEWEBDRIVER", ""), os.environ["PATH"]]))
FLAGS = [
    *["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"],
    *["--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--window-size=1280,900"],
]
# Resolves once math, fonts and pictures have arrived, so that late failures are seen too; at the latest after 20 s.
SETTLE = """
const done = arguments[0];
const math = window.MathJax && MathJax.startup ? MathJax.startup.promise : Promise.resolve();
const pictures = [...document.images].map((i) => { i.loading = "eager"; return i.decode().catch(() => 0); });
const arrived = math.catch(() => 0).then(() => Promise.all(pictures)).then(() => document.fonts.ready);
Promise.race([arrived, new Promise((late) => setTimeout(late, 20000))]).then(() => setTimeout(done, 200));
"""
KEYS = {"ArrowRight": "\ue014", "End": "\ue010"}  # WebDriver's signs for them
# axe-core's rules for WCAG 2 levels A and AA; a finding is (rule, help, places as selector and what is wrong there).
AXE = Path(__file__).parent / "axe-core" / "axe.min.js"
AXE_RUN = """
const done = arguments[0];
axe.run(document, {runOnly: ["wcag2a", "wcag2aa"], resultTypes: ["violations"]}).then(
  (found) => done(found.violations.map((v) => [v.id, v.help, v.nodes.map((n) => n.target.join(" ") + ": "
    + n.html.slice(0, 120) + " " + (n.any[0] ? n.any[0].message : ""))])),
  (error) => done([["axe", String(error), []]]));
"""


class Browser:
    """A headless Chromium over WebDriver, with its console and its network log."""

    def __init__(self) -> None:
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        self.driver = subprocess.Popen([DRIVER, "--port=0"], text=True, **streams)
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

    def _post(self, path: str, **body):
        return self._ask("POST", f"{self.session}/{path}", body)

    def open(self, address: str, width: int = 1280, height: int = 900, scheme: str = "light", motion: str = "") -> None:
        media = {"prefers-color-scheme": scheme, "prefers-reduced-motion": motion}
        features = [{"name": name, "value": value} for name, value in media.items()]
        self._post("goog/cdp/execute", cmd="Emulation.setEmulatedMedia", params={"features": features})
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._post("goog/cdp/execute", cmd="Emulation.setDeviceMetricsOverride", params=size)
        self.network(), self.console_errors()  # what an earlier page did is not this page's
        self._post("url", url=address)
        self.wait_for(SETTLE)

    def run(self, script: str):
        return self._post("execute/sync", script=script, args=[])

    def wait_for(self, script: str):
        """What an asynchronous script hands to its last argument."""
        return self._post("execute/async", script=script, args=[])

    def key(self, name: str) -> None:
        """Presses and lets go of a key, as on a keyboard."""
        strokes = [{"type": kind, "value": KEYS[name]} for kind in ("keyDown", "keyUp")]
        self.actions([{"type": "key", "id": "keys", "actions": strokes}])

    def actions(self, actions: list[dict]) -> None:
        """WebDriver's own pointers and keys."""
        self._post("actions", actions=actions)
        self._ask("DELETE", f"{self.session}/actions")

    def axe(self) -> list[str]:
        """What axe-core finds wrong with the open page, one line a rule with the first places."""
        self.run(AXE.read_text(encoding="utf-8"))
        found = self.wait_for(AXE_RUN)
        return [f"{rule} ({say}), {len(places)} times: {' | '.join(places[:3])}" for rule, say, places in found]

    def console_errors(self) -> list[str]:
        """Errors written to the console since the page was opened or since the last call."""
        entries = self._post("se/log", type="browser")
        return [entry["message"] for entry in entries if entry["level"] == "SEVERE"]

    def network(self) -> tuple[list[str], list[str]]:
        """(addresses asked for, addresses that failed) since the page was opened or since the last call."""
        asked, failed, names = [], [], {}
        for entry in self._post("se/log", type="performance"):
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


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address at which a folder is served."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
