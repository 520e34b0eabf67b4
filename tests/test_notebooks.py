"""The notebooks through the real papermill: their shape, the README's command, bad input, and runs under load."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import formats
import papermill
import pytest
import torch
from cells import run_cells as run_cells_of
from ebmlib.settings.presets import NOTEBOOKS as SETTINGS

from book.execution import NO_START
from ebmlib.nets.mlp import MLP
from ebmlib.page import results
from ebmlib.papers import recovery
from ebmlib.run import checkpoint
from ebmlib.settings import resolve as settings

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NAMES = [path.stem for path in NOTEBOOKS]
OFFLINE = {"https_proxy": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9", "no_proxy": "127.0.0.1"}


def run_papermill(
    source: Path, output: Path, cwd: Path, *parameters: str, timeout: float = 900, **more: str
) -> subprocess.CompletedProcess:
    """papermill as a user calls it, in another folder, offline and with empty caches; `more` comes on top."""
    own = ("EBM_DATA", "HTTPS_PROXY", "HTTP_PROXY", "JUPYTER_DATA_DIR", "XDG_DATA_HOME")
    environment = {k: v for k, v in os.environ.items() if k not in own}
    environment |= OFFLINE | {"XDG_CACHE_HOME": str(cwd / "cache"), "OMP_NUM_THREADS": "1"} | more
    command = [str(Path(sys.executable).with_name("papermill")), str(source), str(output), *parameters]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout)


def cells(path: Path, kind: str) -> list[str]:
    notebook = json.loads(path.read_text())
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == kind]


def shown(path: Path) -> list[str]:
    """Every output of an executed notebook in order: its HTML where it has some, else its text."""
    outputs = [out for cell in json.loads(path.read_text())["cells"] for out in cell.get("outputs", [])]
    kinds = [out["data"] if "data" in out else {"text/plain": out.get("text", "")} for out in outputs]
    return ["".join(kind.get("text/html") or kind.get("text/plain", "")) for kind in kinds]


def pictures(path: Path, name: str) -> int:
    """How many pictures the cell of an executed notebook shows whose figure has this name."""
    named = lambda cell: cell["metadata"].get("mystnb", {}).get("figure", {}).get("name") == name
    (cell,) = filter(named, json.loads(path.read_text())["cells"])
    return sum("image/png" in out.get("data", {}) for out in cell["outputs"])


# Shape


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_cells_are_short_and_prose_outweighs_code(path: Path):
    lines = [len(source.splitlines()) for source in cells(path, "code")]
    words = sum(len(source.split()) for source in cells(path, "markdown"))
    assert max(lines) <= 40
    assert statistics.median(lines) <= 12
    assert words >= 8 * sum(lines), f"{words} words of prose to {sum(lines)} lines of code"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_nothing_is_stored_in_the_sources(path: Path):
    notebook = json.loads(path.read_text())
    stored = [cell for cell in notebook["cells"] if cell.get("outputs") or cell.get("execution_count")]
    assert stored == []
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_parameters_are_those_of_the_settings_and_explained(path: Path):
    found = papermill.inspect_notebook(str(path))
    known = {*settings.COMMON, *(f.name for f in fields(SETTINGS[path.stem][0]))}
    assert set(settings.COMMON) <= set(found), "a common parameter is missing"
    assert set(found) <= known, "a parameter that the settings do not know"
    assert [name for name, about in found.items() if not about["help"]] == []
    defaults = {name: about["default"].strip("\"'") for name, about in found.items()}
    assert (defaults["preset"], defaults["seed"]) == ("quick", "0")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_exercises_have_folded_solutions(path: Path):
    text = "\n".join(cells(path, "markdown"))
    assert "## Exercises" in text
    assert text.count("{admonition} Solution") >= 2
    assert text.count(":class: dropdown") == text.count("{admonition} Solution")


# The main job


@pytest.fixture(scope="module")
def main_job(tmp_path_factory) -> tuple[subprocess.CompletedProcess, Path]:
    folder = tmp_path_factory.mktemp("elsewhere")
    parameters = ["-p", "T", "6", "-p", "preset", "smoke"]
    return run_papermill(ROOT / "notebooks" / "drl_cifar.ipynb", folder / "out.ipynb", folder, *parameters), folder


def test_the_readmes_command_runs_from_another_folder_without_a_network(main_job):
    run, folder = main_job
    assert run.returncode == 0, run.stderr[-2000:]
    rows = results.read(folder / "out.ipynb")
    assert {row.dataset for row in rows if row.preset == "smoke"} == {"fashion_mnist"}, "the true name of the data"
    (kept,) = (folder / "runs" / "drl_cifar").iterdir()
    info = json.loads((kept / "run.json").read_text())
    assert info["finished"] is True
    assert info["key"]["settings"]["T"] == 6
    assert [path.stem for path in sorted(kept.glob("step-*"))] == ["step-00000002", "step-00000003"]


def test_the_banner_of_a_stand_in_comes_before_anything_else(main_job):
    _, folder = main_job
    outputs = shown(folder / "out.ipynb")
    (place,) = [k for k, output in enumerate(outputs) if "this run uses the bundled Fashion-MNIST instead" in output]
    assert outputs[place].startswith('<div class="alert alert-warning">CIFAR-10 is not on this machine')
    assert [output[:19] for output in outputs[:place]] == ["Downloading CIFAR-1"]
    assert outputs[place + 1].startswith('<div class="ebm-table">'), "then the settings"
    plain = [
        "".join(out["data"]["text/plain"])
        for cell in json.loads((folder / "out.ipynb").read_text())["cells"]
        for out in cell.get("outputs", [])
        if "alert-warning" in str(out.get("data", {}).get("text/html"))
    ]
    assert [text.startswith("CIFAR-10 is not on this machine") for text in plain] == [True]


def test_the_bundled_checkpoint_is_shown_where_its_levels_and_steps_fit(main_job, tmp_path: Path):
    files = [ROOT / "data" / "results" / f"{name}.json" for name in ("drl_cifar", "drl_cifar_ablations")]
    committed = [row for file in files for row in results.load(file)[0]]
    given = ["-p", "preset", "smoke", "-p", "K", "30", "-p", "iterations", "1", "-p", "dataset", "fashion_mnist"]
    source, out = ROOT / "notebooks" / "drl_cifar.ipynb", tmp_path / "out.ipynb"
    run = run_papermill(source, out, tmp_path, *given)
    assert run.returncode == 0, run.stderr[-1500:]
    saved = checkpoint.load(ROOT / "data" / "checkpoints" / "drl_fashion_mnist.safetensors")[1]
    its = saved["key"]["settings"]
    levels = f"size = {its['size']}, T = 6, K = 30, b2 = {its['b2']}, variant = code"
    says = f"{saved['iteration']:,} iterations on fashion_mnist, {levels}"
    assert says in [text.strip() for text in shown(out)]
    assert pictures(out, "fig-drl-cifar-checkpoint") == 1
    assert [row for row in results.read(out) if row.preset == saved["preset"]] == committed
    # The preset's own K is another.
    other = main_job[1] / "out.ipynb"
    assert says + " (not this run's: not shown)" in [text.strip() for text in shown(other)]
    assert pictures(other, "fig-drl-cifar-checkpoint") == 0
    assert {row.preset for row in results.read(other)} == {"smoke"}


def test_the_bundled_checkpoint_is_sampled_with_its_own_steps():
    """A run may have another step constant; the file's chains keep theirs."""
    [cell] = [source for source in cells(ROOT / "notebooks" / "drl_cifar.ipynb", "code") if "fits = False" in source]
    path, asked = ROOT / "data" / "checkpoints" / "drl_fashion_mnist.safetensors", {}
    its = {**checkpoint.load(path)[1]["key"]["settings"], "b2": 0.02, "variant": "text"}
    saved = {"iteration": 1, "key": {"dataset": "fashion_mnist", "settings": its, "net": {"channels": 1}}}
    cfg = SimpleNamespace(T=its["T"], K=its["K"], b2=its["b2"] / 5, variant="code")
    given = {"shown": str(path), "saved": saved, "cfg": cfg, "run": SimpleNamespace(preset="quick", seed=3)}
    given |= {"recovery": recovery, "device": torch.device("cpu"), "longer": torch.nn.Identity()}
    exec(cell, given | {"channels_last": lambda net: net, "generate": lambda *args, **options: asked.update(options)})
    assert torch.equal(asked["tables"].delta, recovery.noising(its["T"], 0.02, "text").delta)
    assert (asked["noise"], asked["size"]) == (its["noise"], (its["size"],) * 2)


@pytest.mark.parametrize("place", ["HOME", "JUPYTER_DATA_DIR"])
def test_a_foreign_kernel_of_the_same_name_does_not_run_a_notebook(tmp_path: Path, place: str):
    """A reader's own `python3`, of another environment say, where Jupyter looks for the user's kernels."""
    decoy = {"argv": ["/bin/sh", "-c", "touch decoy; exit 1"], "display_name": "Python 3", "language": "python"}
    folders = [".local/share/jupyter", "Library/Jupyter"] if place == "HOME" else ["."]  # Linux, macOS
    for folder in folders:
        formats.write(tmp_path / "user" / folder / "kernels/python3/kernel.json", json.dumps(decoy).encode())
    notebook = json.loads((ROOT / "notebooks" / "drl_cifar.ipynb").read_text())
    question = "import sys, ebmlib; print(sys.prefix)"
    notebook["cells"] = [notebook["cells"][1] | {"metadata": {}, "source": question}]  # enough to tell who runs it
    formats.write(tmp_path / "in.ipynb", json.dumps(notebook).encode())
    user = {place: str(tmp_path / "user"), "IPYTHONDIR": str(tmp_path / "ipython")}
    run = run_papermill(tmp_path / "in.ipynb", tmp_path / "out.ipynb", tmp_path, timeout=300, **user)
    assert run.returncode == 0, run.stderr[-1500:]
    assert [text.strip() for text in shown(tmp_path / "out.ipynb")] == [sys.prefix]
    assert not (tmp_path / "decoy").exists()


def tiny_sets(folder: Path) -> Path:
    """imagenet32 in its two splits, the second too small to judge by, and LSUN church without its second."""
    x = formats.noise(24, 3, 32, 32)
    formats.write(folder / "imagenet32/train_data_batch_1.npz", formats.npz(x, [1] * 24))
    formats.write(folder / "imagenet32/val_data.npz", formats.npz(x[:3], [1] * 3))
    picture = formats.encoded(formats.noise(64, 64, 3), "WEBP")
    formats.lsun(folder / "church_outdoor_train_lmdb", {f"{k:02}": picture for k in range(24)})
    return folder


def test_a_set_without_a_test_split_is_judged_on_its_validation_images(tmp_path: Path):
    sets = tiny_sets(tmp_path / "sets")
    formats.write(sets / "imagenet32/val_data.npz", formats.npz(formats.noise(20, 3, 32, 32, seed=1), [1] * 20))
    given = ["-p", "preset", "smoke", "-p", "dataset", "imagenet32"]
    source, out = ROOT / "notebooks" / "drl_cifar.ipynb", tmp_path / "out.ipynb"
    run = run_papermill(source, out, tmp_path, *given, EBM_DATA=str(sets))
    assert run.returncode == 0, run.stderr[-1500:]
    rows = [row for row in results.read(out) if row.preset == "smoke"]
    assert {row.dataset for row in rows} == {"imagenet32"}
    assert {row.protocol.partition(" against")[0] for row in rows} == {"16 val images"}


def test_resume_without_an_unfinished_run_stops(main_job):
    _, folder = main_job
    parameters = ["-p", "T", "6", "-p", "preset", "smoke", "-p", "dataset", "fashion_mnist", "-p", "resume", "True"]
    again = run_papermill(ROOT / "notebooks" / "drl_cifar.ipynb", folder / "again.ipynb", folder, *parameters)
    assert again.returncode != 0
    assert "there is no unfinished run of these settings to resume" in last_line(again)
    assert len(list((folder / "runs" / "drl_cifar").iterdir())) == 1


# Cells of drl_cifar in this process


run_cells = partial(run_cells_of, "drl_cifar")


SMOKE = {"preset": "smoke", "dataset": "fashion_mnist", "device": "cpu"}


def test_quick_on_a_gpu_names_the_larger_preset_first(in_process, monkeypatch, capsys):
    """The cell that looks for a device, told that there is one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for preset, begins in (("quick", "A GPU is here: -p preset gpu "), ("gpu", "")):
        namespace, _ = run_cells("recovery.noising", preset=preset)
        assert namespace["device"].type == "cuda"
        out = capsys.readouterr().out
        assert out.startswith(begins)
        assert out.count("about 10 minutes") == out.count("\n") == (preset == "quick")


def test_energies_that_run_away_together_stop_the_run(in_process, tmp_path):
    """Of data and samples alike: the loss, their difference, stays small."""
    namespace, fit = run_cells("training.fit", **SMOKE, head="dense", spectral=False, precision="float32")
    with torch.no_grad():
        namespace["net"].head.bias.fill_(2e6)
    loss, stats = namespace["step"](namespace["data"].to_float(namespace["images"][:8]))
    assert abs(loss.item()) < 1e3
    assert abs(stats["energy"].item() - 2e6) < 1e3
    with pytest.raises(RuntimeError, match=r"diverged at iteration 1: energy is 2e\+06 \(bound 1e\+06\); there is no "):
        exec(fit, namespace)
    assert list(tmp_path.iterdir()) == []


def test_the_objective_dsm_is_equation_14(in_process):
    """|y - (x~ + sigma^2 score)|^2 / (2 sigma^2), the score minus the gradient of the explicit energy."""
    namespace, _ = run_cells("training.fit", **SMOKE, T=1000, objective="dsm")
    rng, tables, net = (namespace[name] for name in ("rng", "tables", "net"))
    x, before = namespace["data"].to_float(namespace["images"][:8]), rng.get_state()
    loss, stats = namespace["step"](x)
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


@pytest.mark.parametrize("wanted", [False, True])
def test_deterministic_reaches_the_loop(in_process, wanted: bool):
    namespace, fit = run_cells("training.fit", **SMOKE, deterministic=wanted, iterations=1)
    assert os.environ.get("CUBLAS_WORKSPACE_CONFIG") == (":4096:8" if wanted else None), "before anything is computed"
    step, seen = namespace["step"], []
    namespace["step"] = lambda x: seen.append(torch.are_deterministic_algorithms_enabled()) or step(x)
    exec(fit, namespace)
    assert seen == [wanted]
    assert torch.are_deterministic_algorithms_enabled() is False


@pytest.mark.parametrize(("given", "dequantized"), [({}, False), ({"T": 1000}, True), ({"variant": "text"}, True)])
def test_pixels_are_dequantized_where_level_0_adds_no_noise(in_process, given, dequantized):
    namespace, source = run_cells("def prepare", **SMOKE, **given)
    exec(source[: source.index("\nema = ")], namespace)
    x = namespace["prepare"](torch.full((4, 1, 8, 8), 100, dtype=torch.uint8), torch.Generator().manual_seed(0))
    assert (len(x.unique()) > 1) == dequantized
    assert x.sub(100 / 128 - 1).min() >= 0
    assert x.sub(101 / 128 - 1).max() <= 0


def test_the_papers_numbers_stand_beside_rows_of_its_own_net_and_data_alone(in_process):
    """Beside no row of ours, then; and what the notebook would print is what the page of the paper's tables has."""
    namespace, _ = run_cells("results.show", **SMOKE, T=1, K=1, iterations=1, samples=2048)
    committed, _ = results.load(ROOT / "data" / "results" / "drl_cifar.json")
    kinds = lambda rows: [(row.name.partition(" ")[0], row.name.rpartition(" ")[2]) for row in rows]
    labels = ("trained", "untrained")
    assert kinds(namespace["judged"]) == [(metric, label) for label in labels for metric in ("KID", "FID", "IS")]
    assert kinds(committed) == [(metric, label) for label in labels for metric in ("KID", "FID")]
    assert {row.paper for row in (*namespace["judged"], *committed)} == {None}

    tables = tomllib.loads((ROOT / "book" / "papers" / "drl.toml").read_text())["table"]
    told = {row["name"]: row["values"] for row in next(t for t in tables if t["source"] == "Table 2")["row"]}
    numbers = lambda *given: [found.get("paper") for found in namespace["printed"](*given)]
    paper = lambda **given: settings.start("drl_cifar", {"preset": "paper", **given}).config
    for T, K, *objective in namespace["table2"]:
        given = {"T": T, "K": K, "objective": (objective or ["recovery"])[0]}
        row = f"T = {T}, K = {K}" + ", trained by denoising score matching" * (given["objective"] == "dsm")
        expected = [float(value.partition(" ")[0]) for value in told[row]]
        assert numbers("inception", "cifar10", paper(**given)) == expected
        for other in (
            (None, "cifar10", paper(**given)),
            ("inception", "svhn", paper(**given)),
            ("inception", "cifar10", paper(**given, size=16)),
            ("inception", "cifar10", paper(**given, iterations=100)),
            ("inception", "cifar10", settings.start("drl_cifar", {"preset": "gpu", **given}).config),
        ):
            assert numbers(*other) == [None, None]
    assert len(namespace["table2"]) == len(told) - 1, "all but T = 6, K = 10, which has no number"
    assert numbers("inception", "cifar10", paper(K=20)) == [None, None]


@pytest.mark.parametrize("preset", ["quick", "gpu"])
def test_the_long_presets_say_which_net_judges_before_they_train(
    in_process, tmp_path, monkeypatch, capsys, preset: str
):
    """Without weights and without a network that is Fashion-CNN."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for name, value in OFFLINE.items():
        monkeypatch.setenv(name, value)
    namespace, _ = run_cells("noise_to", preset=preset, dataset="fashion_mnist", device="cpu")
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Judged by ")]
    if preset == "quick":
        assert said == []
        assert namespace["extractor"] is None
    else:
        assert len(said) == 1
        assert said[0].startswith("Judged by Fashion-CNN, and so named in every score: plain FID, KID and IS need ")
        assert namespace["metrics"].fid_name(namespace["extractor"]) == "FID (Fashion-CNN features)"


@pytest.mark.parametrize(("given", "every"), [({}, 40), ({"iterations": 3}, 1), ({"iterations": 9000}, 250)])
def test_a_short_run_has_checkpoints_on_its_way(in_process, monkeypatch, given: dict, every: int):
    class Asked(Exception):
        pass

    def ask(*_, save_every, **__):
        raise Asked(save_every)

    namespace, fit = run_cells("training.fit", dataset="fashion_mnist", device="cpu", **given)
    monkeypatch.setattr(namespace["training"], "fit", ask)
    with pytest.raises(Asked, match=f"^{every}$"):
        exec(fit, namespace)


# Bad input: one sentence as the last line, and nothing left behind

FAR = ["-p", "preset", "gpu", "-p", "dataset", "cifar10"]  # a set that is not here, and no stand-in allowed
BAD = {
    "preset": (["-p", "preset", "gigantic"], "preset = 'gigantic': allowed are smoke, quick, cpu, gpu, paper"),
    "dataset": (["-p", "dataset", "cifar11"], "cifar10"),
    "T word": (["-p", "T", "banana"], "T = 'banana': allowed is a whole number"),
    "T zero": (["-p", "T", "0"], "T = 0 levels: allowed are 1, any whole number from 2 to 501, and 1000"),
    "T negative": (["-p", "T", "-3"], "T = -3 levels: allowed are 1, any whole number from 2 to 501, and 1000"),
    "T 700": (["-p", "T", "700"], "T = 700 levels: allowed are 1, any whole number from 2 to 501, and 1000"),
    "name": (["-p", "iteratons", "3"], "unknown parameter iteratons (did you mean iterations?)"),
    "device": (["-p", "device", "cuda:9"], "cpu"),
    "run_dir": ([*FAR, "-p", "run_dir", "{folder}/a-file/run"], "a-file/run"),
    "corrupt": ([*FAR, "-p", "checkpoint", "{folder}/corrupt.safetensors"], "corrupt.safetensors"),
    "another net": (["-p", "checkpoint", "{folder}/another.safetensors"], "is not of this notebook"),
    "another width": (["-p", "checkpoint", "{folder}/wide.safetensors"], "is of another net"),
    "samples": (["-p", "samples", "8"], "samples = 8: allowed is a whole number of at least 16"),
    "too few": (["-p", "dataset", "imagenet32"], "24 images to train on and 3 (split val) to judge by: 16 of each"),
    "half a set": (["-p", "dataset", "lsun_church"], "LSUN church (split val) is not on this machine"),
}


def last_line(run: subprocess.CompletedProcess) -> str:
    return run.stderr.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def bad_runs(tmp_path_factory) -> dict[str, tuple[subprocess.CompletedProcess, Path]]:
    """Every case at once, two at a time: each costs a kernel's start."""
    sets = str(tiny_sets(tmp_path_factory.mktemp("sets")))

    def one(item):
        name, (parameters, _) = item
        folder = tmp_path_factory.mktemp("bad")
        (folder / "a-file").write_text("not a folder")
        key = {"net": {"channels": 1, "width": 8, "blocks": 1}, "settings": {"T": 6}}
        checkpoint.save_weights(folder / "another.safetensors", MLP())
        checkpoint.save_weights(folder / "wide.safetensors", MLP(), {"key": key})
        whole = checkpoint.save_weights(folder / "corrupt.safetensors", MLP()).read_bytes()
        (folder / "corrupt.safetensors").write_bytes(whole[:-40] + bytes([whole[-40] ^ 1]) + whole[-39:])
        given = [word.replace("{folder}", str(folder)) for word in parameters]
        defaults = ["-p", "preset", "smoke", "-p", "dataset", "fashion_mnist"]
        source = ROOT / "notebooks" / "drl_cifar.ipynb"
        run = run_papermill(source, folder / "out.ipynb", folder, *defaults, *given, EBM_DATA=sets)
        return name, (run, folder)

    with ThreadPoolExecutor(2) as pool:
        return dict(pool.map(one, BAD.items()))


@pytest.mark.parametrize("case", BAD)
def test_bad_input_ends_with_one_sentence_and_leaves_nothing(bad_runs, case: str):
    run, folder = bad_runs[case]
    assert run.returncode != 0
    assert BAD[case][1] in last_line(run), run.stderr[-600:]
    assert "Traceback" not in last_line(run)
    left = {path.name for path in folder.iterdir()} - {"cache"}
    assert left == {"a-file", "another.safetensors", "wide.safetensors", "corrupt.safetensors", "out.ipynb"}
    with pytest.raises(ValueError, match=r"out\.ipynb"):
        results.read(folder / "out.ipynb")


# The paper's other settings

# Table 2, row by row; the smallest preset takes each at its full number of steps.
ABLATIONS = ("T 1 K 180", "T 1000 K 0", "T 1000 K 0 objective dsm", "T 6 K 10", "T 6 K 30", "T 6 K 50")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("given", ["T 2", "T 6 variant text", "T 6 head dense spectral False", *ABLATIONS])
def test_the_papers_other_settings_run(given: str, tmp_path: Path):
    words = given.split()
    pairs = [word for k in range(0, len(words), 2) for word in ("-p", words[k], words[k + 1])]
    defaults = ["-p", "preset", "smoke", "-p", "dataset", "fashion_mnist"]
    run = run_papermill(ROOT / "notebooks" / "drl_cifar.ipynb", tmp_path / "out.ipynb", tmp_path, *defaults, *pairs)
    assert run.returncode == 0, run.stderr[-1500:]
    T, K = int(words[1]), int(dict(zip(words[::2], words[1::2])).get("K", 2))
    assert f"T = {T}, K = {K}" in results.read(tmp_path / "out.ipynb")[0].protocol


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_killed_run_is_resumed_by_the_notebook(tmp_path: Path):
    """kill -9 in the middle of training; resume=True ends with the weights of a run that nobody killed."""
    given = ["-p", "preset", "smoke", "-p", "dataset", "fashion_mnist", "-p", "iterations", "700", "-p", "K", "1"]
    source = ROOT / "notebooks" / "drl_cifar.ipynb"
    killed = tmp_path / "killed"
    killed.mkdir()
    command = [
        str(Path(sys.executable).with_name("papermill")),
        str(source),
        "out.ipynb",
        *given,
        "-p",
        "run_dir",
        "run",
    ]
    process = subprocess.Popen(command, cwd=killed, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 600
    while not list((killed / "run").glob("step-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    pid = int((killed / "run" / ".lock").read_text())
    os.kill(pid, signal.SIGKILL)  # the kernel, which holds the lock
    process.kill()
    process.wait()
    assert json.loads((killed / "run" / "run.json").read_text())["finished"] is False
    again = run_papermill(
        source, killed / "again.ipynb", killed, *given, "-p", "run_dir", "run", "-p", "resume", "True"
    )
    assert again.returncode == 0, again.stderr[-1500:]
    whole = run_papermill(source, tmp_path / "whole.ipynb", tmp_path, *given, "-p", "run_dir", "run")
    assert whole.returncode == 0, whole.stderr[-1500:]
    last = [sorted((folder / "run").glob("step-*"))[-1] for folder in (killed, tmp_path)]
    assert last[0].name == last[1].name == "step-00000700.safetensors"
    nets = [checkpoint.load(path)[0]["net"]["net"] for path in last]
    assert [name for name in nets[0] if not torch.equal(nets[0][name], nets[1][name])] == []


# Under load


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", NAMES)
def test_many_papermill_runs_under_load_all_end(name: str, tmp_path: Path):
    """Eight runs, four at once on however few cores: a kernel that waits for ever would show here.

    Four at once choose ports at once, and jupyter_client lets go of a port before the kernel takes it (its issue 487).
    A kernel that lost its port has run nothing: one of the eight may be started a second time for that, and for no
    other reason.
    """
    lost = []

    def one(k: int) -> tuple[int, str]:
        folder = tmp_path / str(k)
        folder.mkdir()
        given = ["-p", "preset", "smoke", "-p", "seed", str(k)]
        given += ["-p", "dataset", "fashion_mnist"] if name.startswith(("drl_cifar", "drl_long")) else []
        call = lambda: run_papermill(
            ROOT / "notebooks" / f"{name}.ipynb", folder / "out.ipynb", folder, *given, timeout=900
        )
        run = call()
        if NO_START in run.stderr:
            lost.append(k)
            run = call()
        return run.returncode, run.stderr[-1500:] if run.returncode else ""

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(one, range(8))) == [(0, "")] * 8
    assert len(lost) <= 1
