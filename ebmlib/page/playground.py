"""The Langevin playground: particles under x' = x - a grad E + b xi on a 2D energy, with a kernel or on a static page.

One ES module, `playground.js`, is the source of both. With a kernel it is an anywidget. Without one, the widget's
output carries a `text/html` twin that holds its state as JSON, and the classic script of `static_script()` starts every
such twin on a page (http and file://, offline); _config.yml and the book's build put it there as langevin-static.js.
"""

import html
import json
import math
import re
from pathlib import Path
from string import Template

import anywidget
import torch
import traitlets

from ebmlib.files import atomic
from ebmlib.page.exports import any_spec, encoded, energy_spec
from ebmlib.targets import densities

HERE = Path(__file__).parent
STATIC_CLASS = "ebm-playground-static"
STARTS = ("uniform", "center", "gaussian", "data")
KINDS = ("net", "table", "levels")  # of the specs that ebmlib.page.exports makes of energies that are no density
DATA = 500  # data points that a page carries at most, 5 kB
RANGES = {  # a trait's name in words, its least and its largest value
    "step": ("step", 1e-9, 1000),
    "noise": ("noise", 0, 1000),
    "n_steps": ("steps", 1, 10**6),
    "n_particles": ("particles", 1, 10_000),
    "seed": ("seed", 0, 2**32 - 1),
}
SETTINGS = ("step", "noise", "locked", "mala", "n_steps", "n_particles", "seed", "start", "level")
STATIC_TRAITS = ("density", "spec", "box", "limit", "data", "modes", *SETTINGS)


class Playground(anywidget.AnyWidget):
    """Particles under the one update on a 2D energy, with controls.

    energy: an object of `targets.densities` or its name, what `net_spec`, `table_spec` or `levels_spec` of
    `ebmlib.page.exports` returns, or any module or function (B, 2) -> (B,), drawn on [-box, box]^2 as it is now.
    noise=None locks b = sqrt(2 step), temperature 1, until another noise is set; noise=0 follows the gradient flow.
    step=None is a fifth of the stability limit, and where none is known a step whose noise is a 40th of the picture's
    half side. mala adds the Metropolis correction. particles=None are 400, fewer for a net of more than 12,500 weights.
    start: "uniform" in the picture, "center", "gaussian" (standard normal in the net's units) or "data", from the first
    500 points (N, 2) of `data`; a density brings its own. None is "uniform", and "data" where that would diverge.
    With levels, chains start from noise and walk down to `level`, and steps count K for each of them; step and noise
    are in units of the level's delta^2 and delta: (.5, 1) are the paper's.
    All controls are traits, synced with the kernel where there is one. ValueError names a bad argument.
    """

    _esm = HERE / "playground.js"
    _css = HERE / "playground.css"

    density = traitlets.Unicode(read_only=True).tag(sync=True)
    spec = traitlets.Dict(read_only=True).tag(sync=True)
    box = traitlets.Float(read_only=True).tag(sync=True)
    limit = traitlets.Float(read_only=True).tag(sync=True)
    step = traitlets.Float().tag(sync=True)
    noise = traitlets.Float().tag(sync=True)
    locked = traitlets.Bool().tag(sync=True)
    n_steps = traitlets.Int().tag(sync=True)
    n_particles = traitlets.Int().tag(sync=True)
    seed = traitlets.Int().tag(sync=True)
    start = traitlets.Enum(STARTS, "uniform").tag(sync=True)
    mala = traitlets.Bool().tag(sync=True)
    data = traitlets.Unicode(read_only=True).tag(sync=True)
    modes = traitlets.Dict(read_only=True).tag(sync=True)
    level = traitlets.Int(0).tag(sync=True)  # of the chain on noise levels; setting it walks there
    count = traitlets.Int(0).tag(sync=True)  # steps done, as the page reports them
    mean_energy = traitlets.Float(None, allow_none=True).tag(sync=True)  # None once diverged
    acceptance = traitlets.Float(None, allow_none=True).tag(sync=True)  # of MALA's last proposals
    histogram_distance = traitlets.Float(None, allow_none=True).tag(sync=True)  # total variation on 16 x 16 cells
    effective_temperature = traitlets.Float(None, allow_none=True).tag(sync=True)  # mean |grad E|^2 / mean Laplacian
    modes_visited = traitlets.Int(None, allow_none=True).tag(sync=True)  # modes with a particle within 3 std

    def __init__(
        self, energy="25-gaussians", *, step=None, noise=None, mala=False, steps=500, particles=None, seed=0,
        start=None, data=None, box=None,
    ):  # fmt: skip
        for name, value in {"step": step, "noise": noise, "steps": steps, "particles": particles, "seed": seed}.items():
            if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
                raise ValueError(f"{name} must be a number, not {value!r}")
        if isinstance(energy, str):
            energy = densities.gaussian() if energy == "gaussian" else densities.by_name(energy)
        is_density = isinstance(energy, densities.Density)
        name, spec, box = _place(energy, box)
        limit = 2 * spec["std"] ** 2 if is_density else 0.0  # 0: none is known
        modes = {}  # those that the page counts, and the radius that belongs to each
        if is_density and energy.modes is not None:
            modes = {"at": energy.modes.double().numpy().round(6).tolist(), "radius": 3 * energy.mode_std}
        if data is not None:
            data = _points(data)
        elif is_density:
            data = energy.sample(DATA, torch.Generator().manual_seed(0))
        if start is None:  # the funnel's walls are too steep for any step that suits its neck
            start = "data" if is_density and not limit else "uniform"
        if start not in STARTS:
            raise ValueError(f"start must be one of {', '.join(STARTS)}, not {start!r}")
        T = len(spec.get("delta", []))  # 0 without levels
        if step is None:
            step = 0.5 if T else limit / 5 if limit else (box / 40) ** 2 / 2
        super().__init__(
            step=step, noise=math.sqrt(2 * max(step, 0.0)) if noise is None else noise, locked=noise is None,
            mala=mala, n_steps=T * spec["K"] if T else steps, seed=seed,
            n_particles=_particles(spec) if particles is None else particles,
        )  # fmt: skip
        shown = {"density": name, "spec": spec, "box": box, "limit": limit, "modes": modes}
        for trait, value in {**shown, "data": "" if data is None else encoded(data)}.items():
            self.set_trait(trait, value)
        self.level, self.start = max(T - 1, 0), start  # after what says which there are

    @traitlets.validate("step", "noise", "n_steps", "n_particles", "seed", "level")
    def _in_range(self, proposal):
        trait, value = proposal["trait"].name, proposal["value"]
        name, low, high = RANGES[trait] if trait in RANGES else ("level", 0, len(self.spec.get("delta", [0])) - 1)
        if not low <= value <= high:
            raise ValueError(f"{name} must lie between {low:,} and {high:,}, not {value!r}")
        return value

    @traitlets.validate("start")
    def _has_data(self, proposal):
        if proposal["value"] == "data" and not self.data:
            raise ValueError("start 'data' needs data=, since this energy brings none")
        return proposal["value"]

    @traitlets.observe("step", "locked")
    def _hold_temperature(self, change):
        # The page does the same with the same formula, so the two never answer each other.
        if self.locked:
            self.noise = math.sqrt(2 * self.step)

    @traitlets.observe("noise")
    def _open_lock(self, change):
        if self.locked and not math.isclose(self.noise, math.sqrt(2 * self.step), rel_tol=1e-9):
            self.locked = False

    def _repr_mimebundle_(self, **kwargs):
        data, metadata = super()._repr_mimebundle_(**kwargs)
        return {**data, "text/html": self.static_html()}, metadata

    def static_html(self) -> str:
        """The twin for a page without a kernel: the state as JSON, from which `static_script()` starts it."""
        state = json.dumps({name: getattr(self, name) for name in STATIC_TRAITS}).replace("<", "\\u003c")
        return (
            f'<div class="{STATIC_CLASS}"><script type="application/json">{state}</script>'
            f"<p>A Langevin playground on the {self.density} density. It needs JavaScript.</p></div>"
        )

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write a page of its own, HTML that needs no kernel, no network and no other file.

        FileExistsError where the path is taken, unless `overwrite`.
        """
        path = Path(path)
        if path.exists() and not overwrite:
            raise FileExistsError(f"{path} exists; pass overwrite=True to replace it.")
        title = html.escape(f"Langevin playground: {self.density}")
        script = static_script().replace("</script", "<\\/script")
        page = Template((HERE / "playground_page.html").read_text(encoding="utf-8"))
        with atomic(path) as draft:
            draft.write_text(page.substitute(title=title, playground=self.static_html(), script=script), "utf-8")


def _place(energy, box: float | None) -> tuple[str, dict, float]:
    """(name, spec, half side of the picture) of an energy."""
    if isinstance(energy, densities.Density):
        if box is None:
            return energy.name, energy_spec(energy), 1.05 * energy.box
    elif callable(energy):
        if box is None:
            raise ValueError("a module or a function needs box=, the half side of the picture")
        energy, box = any_spec(energy, box), None
    if box is not None:
        raise ValueError("box is for a module or a function; a density and a spec have their own")
    if not isinstance(energy, dict) or energy.get("kind") not in KINDS or not {"name", "box"} <= energy.keys():
        raise ValueError(
            "the energy must be a density or its name, a module or function with box=, or what net_spec, table_spec or "
            f"levels_spec of ebmlib.page.exports returns, not {type(energy).__name__}"
        )
    return energy["name"], energy, energy["box"]


def _particles(spec: dict) -> int:
    """Particles whose update takes a page about 10 ms, at most 400: each costs two multiplications a weight."""
    layers = spec.get("net", spec).get("layers", [])
    weights = sum(layer["rows"] * layer["columns"] for layer in layers)
    return min(400, 5_000_000 // max(weights, 1))


def _points(data: torch.Tensor) -> torch.Tensor:
    """The data points that a page carries."""
    good = isinstance(data, torch.Tensor) and data.ndim == 2 and data.shape[1] == 2 and len(data)
    if not good or not data.isfinite().all():
        raise ValueError("data must be a tensor of finite points of shape (N, 2)")
    return data[:DATA]


def static_script() -> str:
    """playground.js and its style as one classic script that starts every playground on a page without a kernel."""
    files = ("playground.js", "playground.css", "playground_static.js")
    source, style, start = ((HERE / name).read_text(encoding="utf-8") for name in files)
    body = re.sub(r"^export .*;\n", "", source, flags=re.MULTILINE)
    if re.search(r"^\s*(import|export)\b", body, flags=re.MULTILINE):
        raise RuntimeError("playground.js must not import, and must export only in one-line statements")
    constants = f"const STATIC_CLASS = {json.dumps(STATIC_CLASS)};\nconst CSS = {json.dumps(style)};\n"
    return f'(() => {{\n"use strict";\n{constants}{body}\n{start}}})();\n'
