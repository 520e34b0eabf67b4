"""The notebooks: their shape, the README's command through papermill, bad input, settings, and a run that is killed."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import statistics
import subprocess
import sys
import time
import tomllib
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import formats
import papermill
import pytest
import torch
from cells import all_rows, code_cells, first_fit, same, small_drl
from cells import run_cells as run_cells_of

from book import runner
from book.project import Project, figure, read_notebook, tags
from ebmlib import data, partition
from ebmlib.core import gaussian_energy
from ebmlib.metrics import planar
from ebmlib.nets.mlp import MLP
from ebmlib.page import results
from ebmlib.papers import recovery
from ebmlib.run import checkpoint, training
from ebmlib.settings import resolve

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NAMES = [path.stem for path in NOTEBOOKS]
DRL = ROOT / "notebooks" / "drl_cifar.ipynb"
COMMON = ["preset", "seed", "device", "dataset", "run_dir", "resume", "checkpoint"]
OFFLINE = {"https_proxy": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9", "no_proxy": "127.0.0.1"}
SMOKE = {"preset": "smoke", "dataset": "fashion_mnist", "device": "cpu"}
SMOKE_WORDS = ("-p", "preset", "smoke", "-p", "dataset", "fashion_mnist")
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)


def run_papermill(
    source: Path, output: Path, cwd: Path, *parameters: str, timeout: float = 900, **more: str
) -> subprocess.CompletedProcess:
    """papermill as a user calls it, in another folder, offline and with empty caches; `more` comes on top."""
    own = ("EBM_DATA", "HTTPS_PROXY", "HTTP_PROXY", "JUPYTER_DATA_DIR", "XDG_DATA_HOME")
    environment = {k: v for k, v in os.environ.items() if k not in own}
    environment |= OFFLINE | {"XDG_CACHE_HOME": str(cwd / "cache"), "OMP_NUM_THREADS": "1"} | more
    command = [str(Path(sys.executable).with_name("papermill")), str(source), str(output), *parameters]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout)


def last_line(run: subprocess.CompletedProcess) -> str:
    return run.stderr.strip().splitlines()[-1]


def cells_of_kind(path: Path, kind: str) -> list[dict]:
    return [cell for cell in read_notebook(path)["cells"] if cell["cell_type"] == kind]


def prose(path: Path) -> str:
    return "\n".join(cell["source"] for cell in cells_of_kind(path, "markdown"))


def unfolded(path: Path) -> list[str]:
    """The code that a reader sees who opens no fold, by cells."""
    return [cell["source"] for cell in cells_of_kind(path, "code") if "hide-input" not in tags(cell)]


def shown(path: Path) -> list[str]:
    """Every output of an executed notebook in order: its HTML where it has some, else its text."""
    outputs = [out for cell in cells_of_kind(path, "code") for out in cell["outputs"]]
    kinds = [out.get("data", {"text/plain": out.get("text", "")}) for out in outputs]
    return ["".join(kind.get("text/html") or kind.get("text/plain", "")) for kind in kinds]


# Shape


@each
def test_cells_are_short_and_narrow_and_prose_outweighs_code(path: Path):
    lines = [cell["source"].splitlines() for cell in cells_of_kind(path, "code")]
    assert max(map(len, lines)) <= 40
    assert statistics.median(map(len, lines)) <= 12
    assert [line for part in lines for line in part if len(line) > 79] == []
    visible = sum(len(source.splitlines()) for source in unfolded(path))
    words = len(prose(path).split())
    assert words >= 8 * visible, f"{words} words of prose to {visible} lines of code that a reader sees unfolded"


@each
def test_parameters_are_those_of_the_settings_and_explained(path: Path):
    found = papermill.inspect_notebook(str(path))
    known = {*COMMON, *(f.name for f in fields(resolve.classes()[path.stem]))}
    assert list(found)[:7] == COMMON
    assert len(found) <= 7 + 12, "at most twelve knobs; the others are reached by -p"
    assert set(found) <= known, "a parameter that the settings do not know"
    assert [name for name, about in found.items() if not about["help"]] == []
    defaults = {name: about["default"].strip("\"'") for name, about in found.items()}
    assert (defaults["preset"], defaults["seed"]) == ("quick", "0")


@each
def test_one_call_starts_the_notebook(path: Path):
    source = "\n".join(cell["source"] for cell in cells_of_kind(path, "code"))
    calls = re.findall(r".*(?<![\w.])start\(.*", source)
    assert calls == [f"job = start({resolve.classes()[path.stem].__name__}, globals())"]


PLUMBING = re.compile(r"(?<![\w.])(?:start\(|plots\.panels\b|plt\.|results\.|job\.(?:row|show)\b)")


@each
def test_plumbing_drawing_and_judging_is_folded(path: Path):
    assert [source for source in unfolded(path) if PLUMBING.search(source)] == []


@each
def test_exercises_have_folded_solutions(path: Path):
    text = prose(path)
    assert "## Exercises" in text
    assert text.count(":class: dropdown") == text.count("{admonition} Solution") >= 2


# The README's command

MAIN = ("-p", "T", "6", "-p", "preset", "smoke")


@pytest.fixture(scope="session")
def main_job(once) -> Path:
    """The folder in which `drl_cifar` ran, without a network and without CIFAR-10."""

    def run(folder: Path) -> None:
        ended = run_papermill(DRL, folder / "out.ipynb", folder, *MAIN)
        assert ended.returncode == 0, ended.stderr[-2000:]

    return once("main-job", run)


def test_the_readmes_command_runs_from_another_folder_without_a_network(main_job: Path):
    rows = results.read(main_job / "out.ipynb")
    assert {row.dataset for row in rows if row.preset == "smoke"} == {"fashion_mnist"}, "the true name of the data"
    (kept,) = (main_job / "runs" / "drl_cifar").iterdir()
    info = json.loads((kept / "run.json").read_text())
    assert info["finished"] is True
    assert info["key"]["settings"]["T"] == 6
    assert [path.stem for path in sorted(kept.glob("step-*"))] == ["step-00000002", "step-00000003"]


def test_the_banner_of_a_stand_in_comes_before_the_settings(main_job: Path):
    outputs = shown(main_job / "out.ipynb")
    (place,) = [k for k, output in enumerate(outputs) if "the bundled Fashion-MNIST instead" in output]
    assert "alert" in outputs[place]
    assert [output.partition(" ")[0] for output in outputs[:place]] == [
        "Downloading",
        "fashion_mnist,",
        "fashion_mnist,",
    ]
    assert "<table>" in outputs[place + 1]


@pytest.mark.parametrize("name", ["opening", "chain", "inpaint"])
def test_the_bundled_networks_are_shown_whatever_the_run_itself_trains(main_job: Path, name: str):
    assert figure(main_job / "out.ipynb", f"fig-drl-cifar-{name}")


def test_resume_without_an_unfinished_run_stops(main_job: Path, in_process, monkeypatch):
    monkeypatch.chdir(main_job)
    with pytest.raises(FileNotFoundError, match="there is no unfinished run of these settings to resume"):
        run_cells(None, **SMOKE, T=6, resume=True)
    assert len(list((main_job / "runs" / "drl_cifar").iterdir())) == 1


def test_a_foreign_kernel_of_the_same_name_does_not_run_a_notebook(tmp_path: Path):
    """A reader's own `python3`, of another environment say, where Jupyter looks for the user's kernels."""
    decoy = {"argv": ["/bin/sh", "-c", "touch decoy; exit 1"], "display_name": "Python 3", "language": "python"}
    for folder in (".local/share/jupyter", "Library/Jupyter"):  # Linux, macOS
        formats.write(tmp_path / "user" / folder / "kernels/python3/kernel.json", json.dumps(decoy).encode())
    notebook = json.loads(DRL.read_text())
    question = "import sys, ebmlib; print(sys.prefix)"
    notebook["cells"] = [notebook["cells"][1] | {"metadata": {}, "source": question}]
    formats.write(tmp_path / "in.ipynb", json.dumps(notebook).encode())
    user = {"HOME": str(tmp_path / "user"), "IPYTHONDIR": str(tmp_path / "ipython")}
    run = run_papermill(tmp_path / "in.ipynb", tmp_path / "out.ipynb", tmp_path, timeout=300, **user)
    assert run.returncode == 0, run.stderr[-1500:]
    assert [text.strip() for text in shown(tmp_path / "out.ipynb")] == [sys.prefix]
    assert not (tmp_path / "decoy").exists()


# Cells of drl_cifar in this process


run_cells = partial(run_cells_of, "drl_cifar")


def tiny_sets(folder: Path, held_out: int) -> Path:
    """imagenet32 in its two splits, the second of so many images, and LSUN church without its second."""
    for name, n in {"train_data_batch_1": 24, "val_data": held_out}.items():
        images = formats.npz(formats.noise(n, 3, 32, 32, seed=n), [1] * n)
        formats.write(folder / "imagenet32" / f"{name}.npz", images)
    picture = formats.encoded(formats.noise(64, 64, 3), "WEBP")
    formats.lsun(folder / "church_outdoor_train_lmdb", {f"{k:02}": picture for k in range(24)})
    return folder


def test_a_set_without_a_test_split_is_judged_on_its_validation_images(in_process, monkeypatch, tmp_path: Path):
    monkeypatch.setenv("EBM_DATA", str(tiny_sets(tmp_path / "sets", 20)))
    rows = all_rows(monkeypatch, "drl_cifar", **SMOKE | {"dataset": "imagenet32"})
    assert {row.dataset for row in rows} == {"imagenet32"}
    assert {row.protocol.partition(" against")[0] for row in rows if "KID" in row.name} == {"16 val images"}


def test_a_checkpoint_is_sampled_with_its_own_steps(in_process, monkeypatch, tmp_path: Path):
    """A run may have another step constant, size and noise; the chains of the file keep theirs."""
    path, asked, progressive = small_drl(tmp_path / "small.safetensors"), [], recovery.progressive

    def watched(at_level, tables, x_T, *others, **options):
        asked.append((tables, tuple(x_T.shape[1:]), options.get("noise")))
        return progressive(at_level, tables, x_T, *others, **options)

    monkeypatch.setattr(recovery, "progressive", watched)
    run_cells(None, **SMOKE, checkpoint=path, T=2, K=3, iterations=1)
    own = [tables for tables, shape, noise in asked if (shape, noise) == ((1, 8, 8), 0.7)]
    assert own
    assert all(torch.equal(tables.delta, recovery.noising(2, 0.01, "text").delta) for tables in own)


def test_a_run_draws_what_its_checkpoint_draws(in_process, tmp_path: Path):
    run, _ = run_cells("def judge", **SMOKE, run_dir=str(tmp_path / "run"), doubled=1)
    (last,) = (tmp_path / "run").glob("step-00000003*")
    nets, chains, _ = run["from_file"](str(last))
    draw = lambda nets, chains: run["generate"](nets, chains, 2, 5)
    assert torch.equal(draw(run["learned"], run["own"]), draw(nets, chains))


def test_smaller_scales_come_from_a_network_with_these_settings_and_from_no_other(in_process, monkeypatch, tmp_path):
    run_cells(None, **SMOKE, run_dir=str(tmp_path / "first"), seed=3)
    (last,) = (tmp_path / "first").glob("step-00000003*")
    mean = checkpoint.load(last)[0]["ema"]["net"]
    given = {**SMOKE, "checkpoint": str(last)}
    begun = lambda **more: first_fit(monkeypatch, "drl_cifar", **given, **more)[2]["net"].state_dict()
    both = begun(warm=True)  # the first training is that of all nets
    small = [name for name in both if name.startswith("0.")]
    assert all(torch.equal(both[name], mean[name]) for name in small)
    fresh = [name for name in both if name.startswith("1.") and both[name].ndim > 1]
    assert not any(torch.equal(both[name], mean[name]) for name in fresh)
    for other in ({"K": 3}, {"b2": 1e-3}, {"T": 3}, {"size": 16}, {"variant": "text"}):
        assert same(begun(warm=True, **other), begun(**other))


def test_the_scales_are_trained_one_after_the_other_each_given_the_true_smaller_image(in_process, monkeypatch):
    fit, seen = training.fit, []

    def watched(step, batches, *, net, ema, **options):
        begun = {name: value.clone() for name, value in net.state_dict().items()}
        history = fit(step, batches, net=net, ema=ema, **options)
        seen.append((step, net, begun, ema.module.state_dict(), options["iterations"]))
        return history

    monkeypatch.setattr(training, "fit", watched)
    run_cells("def judge", **SMOKE)
    (_, small, _, mean, first), (step, nets, begun, after, last) = seen
    assert small is nets[0]
    assert (first, last) == (12, 3), "smaller images get four times as many iterations"
    assert same({name.removeprefix("0."): begun[name] for name in begun if name.startswith("0.")}, mean)
    weights = [name for name in begun if name.startswith("0.") and not name.endswith(("_u", "_v"))]
    assert all(torch.equal(begun[name], after[name]) for name in weights), "it stays as it is"
    asked, at = [], nets[1].at
    monkeypatch.setattr(nets[1], "at", lambda t: lambda x: asked.append(x) or at(t)(x))
    x = torch.rand(4, 1, 32, 32) * 2 - 1
    step(x, 0.0)
    assert all(torch.equal(z[:, :1], recovery.split(x)[0]) for z in asked)


@pytest.mark.parametrize("name", ["drl_cifar", "drl_toy"])
def test_energies_that_run_away_together_stop_the_run(in_process, monkeypatch, tmp_path: Path, name: str):
    """Of data and samples alike: the loss, their difference, stays small."""
    fit = training.fit

    def high(step, batches, *, net, **options):
        *_, bias = net.parameters()
        with torch.no_grad():
            bias.fill_(2e6)
        return fit(step, batches, net=net, **options)

    monkeypatch.setattr(training, "fit", high)
    given = {"head": "dense", "spectral": False, "precision": "float32"} if name == "drl_cifar" else {}
    with pytest.raises(RuntimeError, match=r"diverged at iteration 1: (pos|neg|energy) is \S+ \(bound"):
        run_cells_of(name, None, preset="smoke", device="cpu", **given)
    assert not list(tmp_path.rglob("step-*"))


def test_the_objective_dsm_is_equation_14(in_process, monkeypatch):
    """|y - (x~ + sigma^2 score)|^2 / (2 sigma^2), the score minus the gradient of the explicit energy."""
    step, batches, options = first_fit(monkeypatch, "drl_cifar", **SMOKE, T=1000, objective="dsm", scales=1)
    (rng,), (net,), tables = options["generators"], options["net"], recovery.noising(1000)
    x, before = data.to_float(batches.x[:8]), rng.get_state()
    loss, stats = step(x, 0.0)
    rng.set_state(before)
    y, _, t = tables.pairs(x, rng)
    torch.randn(x.shape, generator=rng)  # of the normal approximation, whose gap is logged
    sigma = tables.sigma[t + 1][:, None, None, None]
    noisy = (y + sigma * torch.randn(x.shape, generator=rng)).requires_grad_()
    (score,) = torch.autograd.grad(-(net(noisy, t) / tables.sigma[t + 1] ** 2).sum(), noisy)
    by_hand = ((y - noisy - sigma**2 * score) ** 2 / (2 * sigma**2)).sum((1, 2, 3)).mean()
    torch.testing.assert_close(loss.detach(), by_hand.detach(), rtol=1e-3, atol=0)
    assert set(stats) >= {"gap", "level_gap"}
    loss.backward()
    assert any(float(p.grad.abs().max()) > 0 for p in net.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", ["drl_cifar", "self_adversarial_images"])
def test_deterministic_reaches_the_loop(in_process, monkeypatch, name: str):
    """And cuBLAS, which reads its variable at the first matrix product."""
    given = {"preset": "smoke", "device": "cpu", "iterations": 1}
    assert not first_fit(monkeypatch, name, **given)[2]["deterministic"]
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    assert first_fit(monkeypatch, name, **given, deterministic=True)[2]["deterministic"]
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


@pytest.mark.parametrize(("given", "dequantized"), [({}, False), ({"T": 1000}, True), ({"variant": "text"}, True)])
def test_pixels_are_dequantized_where_level_0_adds_no_noise(in_process, monkeypatch, given, dequantized):
    _, batches, _ = first_fit(monkeypatch, "drl_cifar", **SMOKE, **given)
    x = batches.transform(torch.full((4, 1, 8, 8), 100, dtype=torch.uint8), torch.Generator().manual_seed(0))
    assert (len(x.unique()) > 1) == dequantized
    assert x.sub(100 / 128 - 1).min() >= 0
    assert x.sub(101 / 128 - 1).max() <= 0


@pytest.mark.parametrize(("iterations", "every"), [(3, 1), (160, 40), (9000, 250)])
def test_a_short_run_has_checkpoints_on_its_way(in_process, monkeypatch, iterations: int, every: int):
    _, _, options = first_fit(
        monkeypatch, "drl_cifar", **SMOKE | {"preset": "quick", "iterations": iterations}, scales=1
    )
    assert options["save_every"] == every


def test_the_papers_numbers_stand_beside_rows_of_its_own_net_and_data_alone(in_process):
    """Beside no row of ours, then; and what the notebook would print is what the page of the paper's tables has."""
    namespace, _ = run_cells("job.show(", **SMOKE, T=1, K=1, iterations=1, samples=2048)
    names = ("drl_cifar", "drl_cifar10")
    committed = [results.load(ROOT / "data" / "results" / f"{name}.json")[0] for name in names]
    kinds = lambda rows: [(row.name.partition(" ")[0], row.name.rpartition(" ")[2]) for row in rows]
    spent = ("chain", "training")
    for rows in (namespace["judged"], *committed):
        assert kinds(rows) == [*((kind, "trained") for kind in ("KID", "FID", "IS", "share")), spent]
        assert {row.paper for row in rows} == {None}

    tables = tomllib.loads((ROOT / "book" / "papers" / "drl.toml").read_text())["table"]
    told = {row["name"]: row["values"] for row in next(t for t in tables if t["source"] == "Table 2")["row"]}
    numbers = lambda *given: {kind: found["paper"] for kind, found in namespace["printed"](*given).items()}
    of = lambda **given: resolve.resolved(resolve.classes()["drl_cifar"], given)[0]
    paper = partial(of, preset="paper")
    for T, K, *objective in namespace["table2"]:
        given = {"T": T, "K": K, "objective": (objective or ["recovery"])[0]}
        row = f"T = {T}, K = {K}" + ", trained by denoising score matching" * (given["objective"] == "dsm")
        expected = [float(value.partition(" ")[0]) for value in told[row]]
        assert numbers("cifar10", paper(**given)) == dict(zip(("FID", "IS"), expected)), (
            "the names of Inception's alone"
        )
        others = [paper(**given, size=16), paper(**given, iterations=100), of(preset="gpu", **given)]
        assert not any(numbers("cifar10", other) for other in others)
        assert not numbers("svhn", paper(**given))
    assert len(namespace["table2"]) == len(told) - 1, "all but T = 6, K = 10, which has no number"
    assert not numbers("cifar10", paper(K=20))


def test_a_long_preset_says_which_net_judges_before_it_trains(in_process, tmp_path, monkeypatch, capsys):
    """Without weights and without a network that is Fashion-CNN."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for name, value in OFFLINE.items():
        monkeypatch.setenv(name, value)
    first_fit(monkeypatch, "drl_cifar", **SMOKE | {"preset": "gpu"})
    (said,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Judged by ")]
    assert said.startswith("Judged by Fashion-CNN, and so named in every score: plain FID, KID and IS need ")


# Bad input: one sentence, and nothing left behind

FAR = {"preset": "gpu", "dataset": "cifar10"}  # a set that is not here, and no stand-in allowed
BAD = {
    "dataset": ({"dataset": "cifar11"}, "cifar10"),
    "T 700": ({"T": 700}, "T = 700 levels: allowed are 1, any whole number from 2 to 501, and 1000"),
    "name": ({"iteratons": 3}, r"unknown parameter iteratons \(did you mean iterations\?\)"),
    "device": ({"device": "cuda:9"}, "cpu"),
    "run_dir": ({**FAR, "run_dir": "a-file/run"}, "a-file/run"),
    "corrupt": ({**FAR, "checkpoint": "corrupt.safetensors"}, r"corrupt\.safetensors"),
    "another net": ({"checkpoint": "another.safetensors"}, "is not of this notebook"),
    "another width": ({"checkpoint": "wide.safetensors"}, "is of another net"),
    "too few": ({"dataset": "imagenet32"}, "24 images to train on and 3 .*to judge by"),
    "half a set": ({"dataset": "lsun_church"}, r"LSUN church \(split val\) is not on this machine"),
}


@pytest.fixture
def bad_files(tmp_path: Path) -> set[str]:
    """A file in place of a folder, and three checkpoints that do not fit; their names."""
    (tmp_path / "a-file").write_text("not a folder")
    key = {"net": {"channels": 1, "width": 8, "blocks": 1}, "settings": {"T": 6}}
    checkpoint.save_weights(tmp_path / "another.safetensors", MLP())
    checkpoint.save_weights(tmp_path / "wide.safetensors", MLP(), {"key": key})
    whole = checkpoint.save_weights(tmp_path / "corrupt.safetensors", MLP()).read_bytes()
    (tmp_path / "corrupt.safetensors").write_bytes(whole[:-40] + bytes([whole[-40] ^ 1]) + whole[-39:])
    return {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_ends_with_one_sentence_and_leaves_nothing(in_process, bad_files, tmp_path, monkeypatch, case: str):
    given, sentence = BAD[case]
    if case in ("too few", "half a set"):
        monkeypatch.setenv("EBM_DATA", str(tiny_sets(tmp_path / "sets", 3)))
    for name, value in OFFLINE.items():
        monkeypatch.setenv(name, value)
    with pytest.raises((ValueError, OSError, RuntimeError), match=sentence) as caught:
        run_cells("training.fit", **SMOKE | given)
    assert "\n" not in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} - {"cache", "sets"} == bad_files


def test_papermill_ends_with_that_sentence(bad_files, tmp_path: Path):
    run = run_papermill(DRL, tmp_path / "out.ipynb", tmp_path, *SMOKE_WORDS, "-p", "checkpoint", "corrupt.safetensors")
    assert run.returncode != 0
    assert "corrupt.safetensors" in last_line(run)
    assert "Traceback" not in last_line(run)
    assert {path.name for path in tmp_path.iterdir()} - {"cache"} == bad_files | {"out.ipynb"}
    with pytest.raises(ValueError, match=r"out\.ipynb"):
        results.read(tmp_path / "out.ipynb")


# The paper's other settings

# Table 2, row by row; the smallest preset takes each at its full number of steps.
ABLATIONS = ("T 1 K 180", "T 1000 K 0", "T 1000 K 0 objective dsm", "T 6 K 10", "T 6 K 50")


@pytest.mark.slow
@pytest.mark.parametrize("words", ["T 2", "T 6 variant text", "T 6 head dense spectral False", *ABLATIONS])
def test_the_papers_other_settings_run(in_process, monkeypatch, words: str):
    number = {"True": True, "False": False}
    pairs = zip(words.split()[::2], words.split()[1::2])
    given = {name: number.get(word, int(word) if word.isdigit() else word) for name, word in pairs}
    rows = all_rows(monkeypatch, "drl_cifar", **SMOKE, **given)
    assert f"T = {given['T']}, K = {given.get('K', 2)}" in rows[0].protocol


# Runs that are killed


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_killed_run_is_resumed_by_the_notebook(in_process, tmp_path: Path):
    """kill -9 in the middle of training; resume=True ends with the weights of a run that nobody killed."""
    words = [*SMOKE_WORDS, "-p", "iterations", "200", "-p", "K", "1", "-p", "run_dir", "run"]
    killed = tmp_path / "killed"
    killed.mkdir()
    command = [str(Path(sys.executable).with_name("papermill")), str(DRL), "out.ipynb", *words]
    process = subprocess.Popen(command, cwd=killed, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 600
    while not list((killed / "run").glob("step-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    kernel = json.loads((killed / "run" / "run.json").read_text())["process"]
    os.kill(kernel, signal.SIGKILL)
    process.kill()
    process.wait()
    assert json.loads((killed / "run" / "run.json").read_text())["finished"] is False
    again = run_papermill(DRL, killed / "again.ipynb", killed, *words, "-p", "resume", "True")
    assert again.returncode == 0, again.stderr[-1500:]
    run_cells(None, **SMOKE, iterations=200, K=1, run_dir=str(tmp_path / "run"))
    last = [folder / "run" / "step-00000200.safetensors" for folder in (killed, tmp_path)]
    assert same(*(checkpoint.load(path)[0]["net"]["net"] for path in last))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "name", ["coarse_to_fine_toy", "drl_long_run", "methods_toy", "self_adversarial_images", "vaebm_toy"]
)
def test_a_run_killed_between_its_stages_ends_with_the_same_rows(
    in_process, smoke_runs: Path, monkeypatch, tmp_path: Path, name: str
):
    """Those of the book's run, which nobody killed; a stage that had ended is not computed again."""
    from ebmlib.run.folder import Run

    once, begun = Run.once, []

    def killed_in_the_second(run, stage, compute):
        def computed(*given):
            begun.append(stage)
            if len(begun) == 2:
                raise KeyboardInterrupt
            return compute(*given)

        return once(run, stage, computed)

    monkeypatch.setattr(Run, "once", killed_in_the_second)
    (plan,) = [plan for plan in Project(ROOT, preset="smoke").plans() if plan.name == name]
    given = {**plan.parameters, "run_dir": str(tmp_path / "run")}
    with pytest.raises(KeyboardInterrupt):
        run_cells_of(name, None, **given)
    first, killed = begun
    rows = all_rows(monkeypatch, name, **given, resume=True)
    assert begun[2] == killed
    assert first not in begun[1:]
    timeless = lambda rows: [replace(row, seconds=None) for row in rows if row.unit != "s"]
    assert timeless(rows) == timeless(results.read(smoke_runs / f"{name}.ipynb")[: len(rows)])
    assert not (tmp_path / "run-2").exists()


# Chains that cannot learn what they are judged by


@pytest.mark.parametrize(
    ("name", "next_cell", "above"),
    [
        ("ml_toy", "def step(batch, done)", {"step": 0.03}),  # in scaled units the moons are .22 wide
        ("improved_cd_toy", "def make_step(", {"step": 0.004}),
        ("improved_cd_toy", "def make_step(", {"dataset": "checkerboard"}),
        ("drl_toy", "def draw(n, rng)", {"dataset": "25-gaussians"}),
        ("coarse_to_fine_toy", "x = field.sample(4000", {"step": 0.02}),
    ],
)
def test_a_toy_trains_with_steps_below_the_floor_and_warns_above_it(in_process, name, next_cell, above):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for preset in ("smoke", "quick", "paper"):
            run_cells_of(name, next_cell, preset=preset, device="cpu")
    with pytest.warns(UserWarning, match="no energy makes their ends as narrow"):
        run_cells_of(name, next_cell, preset="smoke", device="cpu", **above)


@pytest.mark.parametrize("short", ["grid", "samples"])
def test_vaebm_takes_the_larger_of_two_log_z_that_err_low(short: str):
    """log Z is 0, of a VAE that is a standard normal and an energy that is 0 but at its center."""
    (source,) = [cell for cell in code_cells("vaebm_toy") if "def judge(" in cell]
    box, nodes = 6.0, 100  # no node lies at the center
    log_p = -partition.on_grid(gaussian_energy, box, nodes) - float(short == "grid")
    draw = (lambda n, rng: torch.zeros(n, 2)) if short == "samples" else (lambda n, rng: torch.randn(n, 2))
    names = {"cfg": SimpleNamespace(nodes=nodes, tests=1), "vae": SimpleNamespace(sample=draw), "rng": None}
    names |= {"values": log_p, "area": 2 * math.log(2 * box / nodes), "box": box, "device": None}
    names |= {"torch": torch, "partition": partition, "planar": planar, "log_vae": None}
    exec(source.split("\nq, on_grid")[0], names)
    q, on_grid, sampled = names["judge"](lambda x: (x.abs().sum(1) < 1e-3).float())
    low = {"grid": on_grid, "samples": float(sampled.log_z)}.pop(short)
    assert low == pytest.approx(-1, abs=1e-3)
    assert q.log_z == pytest.approx(0, abs=1e-3)


# Under load


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_papermill_runs_under_load_all_end(tmp_path: Path):
    """Every notebook with another seed, four at once on however few cores: a kernel that waits for ever would show.

    A kernel whose port was taken (jupyter_client's issue 487) has run nothing: two may be started a second time.
    """
    lost = []

    def one(name: str) -> str:
        folder = tmp_path / name
        folder.mkdir()
        source, given = ROOT / "notebooks" / f"{name}.ipynb", ("-p", "preset", "smoke", "-p", "seed", "1")
        call = partial(run_papermill, source, folder / "out.ipynb", folder, *given)
        run = call()
        if runner.NO_START in run.stderr:
            lost.append(name)
            run = call()
        return f"{name}: {run.stderr[-1500:]}" if run.returncode else ""

    with ThreadPoolExecutor(4) as pool:
        assert [error for error in pool.map(one, NAMES) if error] == []
    assert len(lost) <= 2
