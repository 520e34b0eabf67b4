"""The playground in a live JupyterLab in a real browser: sliders move Python's values, and Python moves the sliders."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat
import pytest
from browsing import CHROMIUM, DRIVER, Browser
from nbformat.v4 import new_code_cell, new_notebook

ROOT = Path(__file__).resolve().parents[1]
LAB = ROOT / "build" / "lab"  # beside the environment: `make lab` installs it there

CODE = """
import ipywidgets
from ebmlib.page.playground import Playground
p = Playground("25-gaussians", steps=100_000)
p
"""
LINKED = """
q = Playground("gaussian", steps=100)
log_step = ipywidgets.FloatLogSlider(value=q.step, min=-6, max=0, readout_format=".2e")
link = ipywidgets.jslink((log_step, "value"), (q, "step"))
ipywidgets.VBox([log_step, q])
"""
RUN_ALL = """
const done = arguments[0];
const ready = async () => {
  while (!window.jupyterapp) await new Promise((later) => setTimeout(later, 200));
  const app = window.jupyterapp;
  await app.restored;
  let panel = null;
  while (!(panel = app.shell.currentWidget) || !panel.sessionContext) await new Promise((l) => setTimeout(l, 200));
  await panel.sessionContext.ready;
  await app.commands.execute("notebook:run-all-cells");
};
ready().then(() => done("ran"), (error) => done(String(error)));
"""
ASK = """
const done = arguments[0];
const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
const future = kernel.requestExecute({code: CODE});
let text = "";
future.onIOPub = (message) => { text += message.content.text || message.content.evalue || ""; };
future.done.then(() => done(text), (error) => done("failed: " + error));
"""


class Lab:
    """One open notebook: `python` runs code in its kernel and gives what it prints."""

    def __init__(self, browser: Browser) -> None:
        self.browser = browser

    def python(self, code: str) -> str:
        return self.browser.wait_for(ASK.replace("CODE", json.dumps(code))).strip()

    def value(self, code: str) -> float:
        return float(self.python(f"print({code})"))

    def until(self, said: str, true: str | Callable[[], bool], seconds: float = 60) -> None:
        """Waits until the page's script or the test's function gives something true."""
        deadline = time.monotonic() + seconds
        while not (self.browser.run(true) if isinstance(true, str) else true()):
            assert time.monotonic() < deadline, f"{said}: not within {seconds} s"
            time.sleep(0.2)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("Chromium or chromedriver is not installed, so no notebook was opened in a browser")
    if not (LAB / "jupyterlab").is_dir():
        pytest.skip("JupyterLab is not installed in build/lab (make lab), so no live widget was moved")
    folder = tmp_path_factory.mktemp("lab")
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = new_notebook(cells=[new_code_cell(CODE), new_code_cell(LINKED)], metadata=kernel)
    nbformat.write(notebook, folder / "live.ipynb")
    own = {f"JUPYTER_{name}_DIR": str(folder / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")}
    own |= {"PYTHONPATH": os.pathsep.join([str(LAB), str(ROOT)]), "JUPYTERLAB_DIR": str(LAB / "share/jupyter/lab")}
    options = ["--no-browser", "--port=0", "--ServerApp.token=", "--allow-root", "--expose-app-in-browser"]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options, f"--ServerApp.root_dir={folder}"],
            cwd=folder, env=os.environ | own, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
    browser = None
    try:
        deadline, address = time.monotonic() + 90, None
        while address is None and time.monotonic() < deadline and server.poll() is None:
            address = re.search(r"http://(?:localhost|127\.0\.0\.1):(\d+)/", (folder / "log").read_text())
            time.sleep(0.2)
        assert address, (folder / "log").read_text()[-2000:]
        browser = Browser()
        browser.open(f"http://127.0.0.1:{address[1]}/lab/tree/live.ipynb")
        lab = Lab(browser)
        assert browser.wait_for(RUN_ALL) == "ran"
        lab.until("two canvases", "return document.querySelectorAll('.ebm-playground canvas').length == 2")
        # Running all cells scrolls to the last, and only what is in view runs.
        browser.run("document.querySelector('.ebm-playground').scrollIntoView()")
        yield lab
    finally:
        if browser is not None:
            browser.close()
        server.terminate()
        server.wait(30)


SLIDER = "document.querySelector('.ebm-playground input[type=range]')"
SHOWN = f"return {SLIDER}.closest('.ebm-row').querySelector('output').textContent"
SEED = "return document.querySelector('.ebm-playground input[type=number]').value"


@pytest.mark.slow
def test_the_page_and_python_move_each_others_values(lab: Lab):
    before = lab.value("p.step")
    lab.browser.run(f"{SLIDER}.focus()")
    for _ in range(10):
        lab.browser.key("ArrowRight")
    time.sleep(1)
    after = lab.value("p.step")
    shown = float(lab.browser.run(SHOWN))
    assert after > before
    assert shown == pytest.approx(after, rel=0.06)  # the page shows two digits
    assert lab.value("p.noise") == pytest.approx((2 * after) ** 0.5)
    lab.python("p.step = 3.2e-3; p.seed = 7")
    lab.until("Python's step on the page", f"{SHOWN} == '3.2e-3'")
    lab.until("Python's seed on the page", f"{SEED} == '7'")


@pytest.mark.slow
def test_the_page_tells_python_what_its_particles_do(lab: Lab):
    first = lab.value("p.count")
    lab.until("a running chain", "return /Pause/.test(document.querySelector('.ebm-play').textContent)")
    lab.until("its count in Python", lambda: lab.value("p.count") > first, 30)
    assert 0 < lab.value("p.mean_energy") < 100


@pytest.mark.slow
def test_a_linked_slider_and_a_layout_box_work(lab: Lab):
    assert lab.browser.run("return document.querySelectorAll('.widget-vbox .ebm-playground').length") == 1
    for one, other, value in (("log_step.value", "q.step", 1e-4), ("q.step", "log_step.value", 1e-3)):
        lab.python(f"{one} = {value}")
        lab.until(f"{other} = {value}", lambda: lab.value(other) == pytest.approx(value), 20)  # noqa: B023
