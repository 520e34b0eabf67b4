"""Settings: the papers' values, presets that resolve, one sentence for every wrong parameter, a notebook's start."""

import math
import os
import types
from dataclasses import FrozenInstanceError, asdict, fields, replace

import formats
import matplotlib
import numpy as np
import pytest
import torch

from ebmlib import data
from ebmlib.page import results, shown
from ebmlib.run.job import start
from ebmlib.settings import resolve
from ebmlib.settings.cf_ebm import CoarseToFineToy
from ebmlib.settings.drl import DRLImages, DRLInterpolation, DRLLongRun, DRLToy
from ebmlib.settings.improved_cd import ImprovedCDToy
from ebmlib.settings.self_adversarial import SelfAdversarialImages, SelfAdversarialToy
from ebmlib.settings.toys import LangevinToy, MethodsToy, MLToy, PartitionToy
from ebmlib.settings.vaebm import VAEBMToy
from ebmlib.settings.value import CPU, PRESETS, value

CLASSES = list(resolve.classes().values())
EVERY = [pytest.param(cls, preset, id=f"{cls.notebook}-{preset}") for cls in CLASSES for preset in cls.presets]
each = pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.notebook)


def config(cls, **given):
    return resolve.resolved(cls, given)[0]


def rows_of(cls, **given):
    """The settings table by name: (paper's text, released code, this run, where)."""
    return {name: rest for name, *rest in resolve.table(*resolve.resolved(cls, given))}


# -- the papers' values --


def test_the_image_defaults_are_tables_4_and_5():
    paper = config(DRLImages, preset="paper")
    assert paper == DRLImages()
    assert (paper.size, paper.width, paper.multipliers, paper.blocks) == (32, 128, (1, 2, 2, 2), 5)  # Table 4, N = 5
    assert (paper.beta1, paper.batch, paper.iterations, paper.lr) == (0.9, 256, 50_000, 1e-4)  # Table 5, Appendix B
    assert (paper.T, paper.K, paper.spectral, paper.flip) == (6, 30, True, True)  # section 4, Appendix B
    assert (paper.b2, paper.variant, paper.warmup, paper.ema, paper.noise) == (2e-4, "code", 1000, 0.999, 0.99)
    assert (paper.samples, paper.clip_norm) == (50_000, None)


@pytest.mark.parametrize(("cls", "preset"), EVERY)
def test_every_preset_resolves_to_values_that_pass_as_parameters(cls, preset):
    found = config(cls, preset=preset)
    everything = {f.name: "off" if (v := getattr(found, f.name)) is None else v for f in fields(cls)}
    assert config(cls, preset=preset, **everything) == found


@each
def test_a_presets_value_deviates_and_its_preset_is_offered(cls):
    assert [p for p in PRESETS if p in cls.presets] == list(cls.presets)
    for f in fields(cls):
        given = f.metadata["presets"]
        assert f.default not in given.values(), f.name
        assert set(given) <= {*cls.presets, *(CPU if given.keys() >= {*CPU} else ())}, f.name  # small names all of CPU


@each
def test_presets_stand_in_order_of_cost(cls):
    for name in ("iterations", "samples", "tests", "particles", "check_particles"):
        costs = [getattr(config(cls, preset=p), name, 0) for p in ("smoke", "quick", cls.presets[-1])]
        assert costs == sorted(costs), name


def test_small_stands_for_every_preset_of_a_cpu_that_is_not_named():
    presets = value(5, small=1, quick=2, gpu=3).metadata["presets"]
    assert presets == {"smoke": 1, "quick": 2, "cpu": 1, "long": 1, "gpu": 3}
    with pytest.raises(TypeError, match="fast"):
        value(5, fast=1)


# -- resolving --


def test_parameters_beat_the_preset_and_none_means_the_preset():
    quick = config(DRLImages)  # quick is the preset of a notebook that names none
    found = config(DRLImages, preset="quick", T=3, K=None, multipliers=[1, 2], lr=1, seed=7)
    assert found == replace(quick, T=3, multipliers=(1, 2), lr=1.0)
    assert type(found.lr) is float
    assert config(DRLImages, preset="cpu").clip_norm == 1.0
    assert config(DRLImages, preset="cpu", clip_norm="off").clip_norm is None
    assert rows_of(DRLImages, preset="cpu", clip_norm="off")["clip_norm"][2] == "off"
    assert config(DRLImages, lr="1e-4").lr == 1e-4, "YAML reads 1e-4 as a text"
    with pytest.raises(FrozenInstanceError):
        found.T = 2


def test_a_thousand_levels_bring_the_normal_approximation_and_allow_score_matching():
    assert [config(DRLImages, T=1000, K=K).K for K in (None, 2)] == [0, 2]
    noises = [config(DRLImages, **given).noise for given in ({}, {"T": 1000, "K": 2}, {"T": 1000})]
    assert noises == [0.95, 0.95, 1.0], "the normal approximation draws from the conditional itself"
    assert config(DRLImages, T=1000, noise=0.9).noise == 0.9
    found = config(DRLImages, T=1000, objective="dsm")
    assert (found.objective, found.K) == ("dsm", 0)
    assert config(DRLImages, T=1000, K=0, objective="dsm") == found


@pytest.mark.parametrize("preset", ["quick", "cpu", "paper"])
def test_the_variant_text_brings_what_the_text_prints(preset):
    given = {"preset": preset, "variant": "text"}
    text, rows = config(DRLImages, **given, b2=None), rows_of(DRLImages, **given)
    assert rows["variant"][:3] == ["text", "code", "text"]
    assert rows["b2"][:3] == ["b = .0002", "0.0002", "4e-08"]  # the table shows b, the setting is its square
    assert rows["noise"][:3] == ["1", "0.99", "1.0"]
    assert rows["head"][:3] == ["dense", "time", "dense"]
    code = config(DRLImages, preset=preset)
    assert replace(text, **{name: getattr(code, name) for name in ("variant", "b2", "noise", "head")}) == code
    own = {"b2": 1e-4, "noise": 0.5, "head": "time"}
    assert config(DRLImages, **given, **own) == replace(code, variant="text", **own)
    assert config(DRLImages, **given, T=1000) == replace(text, T=1000, K=0)


# Tables 4 and 5 of recovery likelihood, Table 2 and Appendix A.2 of self-adversarial: what differs from the default;
# CelebA-HQ, which recovery likelihood has not, as LSUN church. The paper's T1k is on CIFAR-10 alone, else as T6.
AT_64 = {"size": 64, "multipliers": (1, 2, 2, 2, 4), "blocks": 2, "beta1": 0.9, "batch": 128, "iterations": 100_000}
AT_128 = {"multipliers": (1, 2, 2, 2, 4, 4), "blocks": 2, "beta1": 0.5, "batch": 64, "iterations": 100_000}
BEDROOM = AT_128 | {"blocks": 5, "iterations": 56_000}
CIFAR = {"size": 32, "blocks": 5, "beta1": 0.9, "batch": 256, "iterations": 50_000}
PUBLISHED = [
    *((cls, name, None, AT_64) for cls in (DRLImages, DRLLongRun) for name in ("celeba", "lsun_church", "celeba_hq")),
    *((cls, name, 128, AT_128) for cls in (DRLImages, DRLLongRun) for name in ("lsun_church", "celeba_hq")),
    *((cls, "lsun_bedroom", 128, BEDROOM) for cls in (DRLImages, DRLLongRun)),
    (DRLImages, "lsun_bedroom", 64, AT_64),
    (DRLImages, "svhn", None, CIFAR),
    (DRLLongRun, None, None, CIFAR),
    (SelfAdversarialImages, "mnist", None, {"size": 32, "filters": 32, "K": 40, "iterations": 8000}),
    (SelfAdversarialImages, "cifar10", None, {"filters": 64, "multipliers": (1, 2, 4, 8), "K": 60}),
    (SelfAdversarialImages, "celeba", None, {"filters": 32, "K": 60, "iterations": 30_000}),
]


@pytest.mark.parametrize(("cls", "dataset", "size", "want"), PUBLISHED)
def test_the_paper_preset_takes_what_the_paper_sets_for_a_data_set(cls, dataset, size, want):
    given = {"preset": "paper", "dataset": dataset, "size": size}
    found, published = resolve.resolved(cls, given)
    assert {name: getattr(found, name) for name in want} == want
    texts = {name: " x ".join(map(str, to)) if isinstance(to, tuple) else str(to) for name, to in published.items()}
    rows = rows_of(cls, **given)
    assert {name: rows[name][0] for name in published} == texts


def test_shorter_presets_and_parameters_beat_what_a_paper_sets_for_a_data_set():
    for preset in ("smoke", "quick", "gpu"):
        found, published = resolve.resolved(DRLImages, {"preset": preset, "dataset": "celeba"})
        assert found == config(DRLImages, preset=preset)
        assert published["size"] == 64  # the table's first column still shows it
    assert config(DRLImages, preset="paper", dataset="celeba", batch=7).batch == 7


def test_what_is_no_parameter_is_left_alone():
    shell = {"In": [""], "Out": {}, "exit": 1, "quit": 1, "open": open, "get_ipython": config, "_i1": ""}
    code = {"math": math, "config": config, "Random": type("Random", (), {}), "pkg": types}
    assert resolve.parameters({**shell, **code, "seed": 2}) == {"seed": 2}


# -- wrong parameters: the sentence names the setting, what was given and what is allowed --

POSITIVE, WHOLE, LIST = (f"allowed is a {kind}" for kind in ("number above 0", "whole number", "list of positive"))
SEED = f"{WHOLE} of at least 0 and below 4294967296"  # a time stamp is no seed for NumPy and JavaScript
BAD = [  # class, name, value, what is allowed
    (DRLImages, "preset", "paprika", "(did you mean paper?): allowed are smoke, quick, cpu, long, gpu, paper"),
    *((DRLToy, "preset", preset, "allowed are smoke, quick, gpu, paper") for preset in (None, [1])),
    *((DRLToy, "seed", seed, SEED) for seed in (-1, "one", None, 20250101120000, 2**64)),
    *((DRLToy, name, 3, "allowed is a text or None") for name in ("device", "dataset")),
    *((cls, "resume", "yes", "allowed is True or False") for cls in (DRLToy, LangevinToy)),
    (LangevinToy, "dataset", "rings", "has no use for it, allowed is only None"),
    (LangevinToy, "resume", True, "has no use for it, allowed is only False"),
    (CoarseToFineToy, "dataset", "rings", "has no use for it, allowed is only 'two-fields'"),
    *((DRLImages, "T", T, WHOLE) for T in ("banana", 6.0)),
    *((cls, "T", T, "2 to 501, and 1000") for cls in (DRLToy, DRLImages, PartitionToy) for T in (0, 700)),
    (DRLImages, "K", True, f"{WHOLE} of at least 0"),
    (DRLImages, "K", 0, "with T = 6"),
    (DRLImages, "objective", "dsm", "with T = 6: denoising score matching is for T = 1000 and K = 0"),
    (DRLImages, "flip", 1, "allowed is True or False"),
    *((DRLImages, "lr", lr, POSITIVE) for lr in (True, math.nan, math.inf, "nan", "fast", "off", -0.1, 0)),
    *((cls, "clip_norm", 0, f"{POSITIVE}, or the text off") for cls in (DRLToy, DRLImages)),
    (DRLImages, "size", 18, "the net halves images 3 times"),
    (SelfAdversarialImages, "size", 12, "the net halves images 3 times"),
    (DRLImages, "samples", 15, f"{WHOLE} of at least 16"),
    *((cls, "ema", 1.0, "at least 0 and below 1") for cls in (DRLImages, SelfAdversarialToy)),
    (SelfAdversarialToy, "ml_batch", 300, "allowed is at most batch = 256"),
    *((cls, "cells", 99, "a whole number of at least 100") for cls in (MLToy, ImprovedCDToy, MethodsToy)),
    *(
        (cls, "width", 7, "allowed is an even number")
        for cls in (DRLToy, DRLImages, DRLLongRun, PartitionToy, MethodsToy)
    ),
    *((cls, "width", 2, "a whole number of at least 4") for cls in (DRLToy, PartitionToy, MethodsToy)),
    *((cls, "span", 0.01, "a number of at least 0.1") for cls in (DRLToy, MLToy, PartitionToy, MethodsToy)),
    (MLToy, "batch", 3, "a whole number of at least 4"),  # MMD takes four samples
    (SelfAdversarialImages, "b", 0.0, "a number above 0"),  # else there is no noisy chain
    (DRLToy, "seed", 20250101120000, "below 4294967296"),
    (ImprovedCDToy, "batch", 2000, "allowed is at most capacity = 1000"),
    (VAEBMToy, "direct", 20_000, "allowed is at most tests = 10000"),
    *((cls, "gain", 0.0, POSITIVE) for cls in (DRLToy, ImprovedCDToy, VAEBMToy, SelfAdversarialToy, MethodsToy)),
    (LangevinToy, "step", 2.0, f"{POSITIVE} and below 2"),
    *((DRLImages, "multipliers", given, LIST) for given in ([], 2, [1, 0], [True])),
    (DRLImages, "multipliers", "[1, 2]", "from papermill by -y 'multipliers: [1, 2]'"),
    (PartitionToy, "hmc_steps", [4], "allowed are two"),
    (CoarseToFineToy, "K", (10, 20, 30), "they have [3, 2, 2]"),
    (DRLInterpolation, "steps", 4, "allowed is an odd number"),
    (DRLInterpolation, "way", "line", "allowed are 'arc', 'angle'"),
    (DRLImages, "variant", 1, "allowed is a text"),
]


@pytest.mark.parametrize(("cls", "name", "given", "allowed"), BAD)
def test_a_wrong_value_is_named_with_what_is_allowed(cls, name, given, allowed):
    with pytest.raises(ValueError) as caught:  # noqa: PT011  what it must say is compared below
        resolve.resolved(cls, {name: given})
    (line,) = str(caught.value).splitlines()
    assert name in line
    assert allowed in line
    assert str(given) in line or cls is CoarseToFineToy


@pytest.mark.parametrize(("name", "near"), [("iteratons", "iterations"), ("Preset", "preset")])
def test_an_unknown_name_gets_the_nearest_known_one(name, near):
    with pytest.raises(ValueError, match=rf"{name} \(did you mean {near}\?\): drl_cifar takes preset, .*"):
        resolve.resolved(DRLImages, {name: 1})


# -- a notebook's start --


@pytest.fixture
def begin(monkeypatch, tmp_path):
    """start at preset smoke in an empty folder, with small images; `begin.shown` is what it displays."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "to be put back")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    pages, sets = [], {"here": {"train": 80, "test": 20}}
    monkeypatch.setattr(shown, "show", lambda page, text, **_: pages.append(text))

    def images(name, split="train", *, size, fallback=False):
        stands_in = name not in sets
        if stands_in and not fallback:
            raise FileNotFoundError(name)
        source = data.Source("here", split, stands_in, f"{name} is not here" * stands_in)
        return torch.zeros(sets["here"][split], 1, size, size, dtype=torch.uint8), source

    monkeypatch.setattr(data, "images", images)
    monkeypatch.setattr(data, "held_out", lambda name: "test")
    begin = lambda cls, **given: start(cls, {"preset": "smoke", "device": "cpu", **given})
    begin.shown, begin.sets = pages, sets
    with matplotlib.rc_context():
        yield begin


def test_a_density_chapter_starts_with_its_target_its_run_and_its_table(begin):
    job = begin(DRLToy, seed=3, deterministic=True, K=7)
    assert (job.notebook, job.preset, job.seed, job.dataset, job.cfg.K) == ("drl_toy", "smoke", 3, "checkerboard", 7)
    assert job.density.name == "checkerboard"
    assert torch.equal(torch.rand(3, generator=job.rng), torch.rand(3, generator=torch.Generator().manual_seed(3)))
    assert job.run.key == {"settings": asdict(job.cfg), "dataset": "checkerboard", "seed": 3}
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    (table,) = begin.shown
    assert table.splitlines()[0] == "setting | paper's text | released code | this run (smoke) | where"
    assert len(table.splitlines()) == 1 + len(fields(DRLToy))
    assert begin(DRLToy, dataset="swiss-roll").density.name == "swiss-roll"


def test_an_image_chapter_names_its_stand_in_first_and_counts_its_images(begin):
    job = begin(DRLImages)
    assert begin.shown[0] == "cifar10 is not here"
    assert (job.dataset, job.split, job.run.key["dataset"]) == ("here", "test", "here")
    assert (len(job.train), len(job.held_out), job.train.shape[-1]) == (80, 20, job.cfg.size)
    with pytest.raises(FileNotFoundError, match="cifar10"):
        begin(DRLImages, preset="gpu")
    with pytest.raises(ValueError, match="80 images to train on"):
        begin(DRLImages, dataset="here", batch=81)
    begin.sets["here"]["train"] = 64  # its Gaussian of 8 x 8 pixels needs one more for a covariance
    with pytest.raises(ValueError, match="65"):
        begin(DRLLongRun, dataset="here")


def test_chapters_without_a_run_of_their_own_or_with_more_in_its_name(begin, tmp_path):
    job = begin(LangevinToy, run_dir=str(tmp_path / "run"))
    assert (job.run, job.density, job.train) == (None, None, None)
    assert begin.shown[0].splitlines()[0] == "setting | this run (smoke) | where"
    job = begin(DRLInterpolation)
    assert job.run is None
    job.open_run("here", of={"T": 6})
    assert (job.dataset, job.run.key["of"], job.run.key["dataset"]) == ("here", {"T": 6}, "here")
    assert begin(MethodsToy, targets=3).dataset == "two-moons+25-gaussians+checkerboard"
    assert list(tmp_path.iterdir()) == [], "nothing is written before the first checkpoint"


def test_a_run_of_own_images_is_named_for_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def fill(value):
        for k in range(80):
            formats.write(tmp_path / f"pics/{k}.png", formats.encoded(np.full((8, 8, 3), value + k, np.uint8)))

    def run_of(path, **given):
        with matplotlib.rc_context():
            return start(DRLImages, {"preset": "smoke", "device": "cpu", "dataset": f"folder:{path}", **given}).run

    fill(10)
    with run_of("pics") as run:
        run.save(1, {}, {})
    for path in ("./pics", tmp_path / "pics"):
        with run_of(path, resume=True) as again:
            assert again.folder == run.folder
    fill(20)
    with pytest.raises(FileNotFoundError, match=rf"{run.folder} has images_sha256 = '\w+', not '\w+'$"):
        run_of("pics", resume=True)
    fill(10)
    run_of("pics", resume=True).close()


def test_a_checkpoint_of_another_notebook_is_refused_by_the_names_of_both(begin):
    with begin(DRLToy).run as run:
        path = str(run.save(1, {}, {}))
        run.once("a", lambda stage: 1)
    stored = str(run.folder / "a/result.safetensors")
    bundled = str(data.CHECKOUT / "checkpoints/drl_fashion_mnist.safetensors")  # its header names no notebook
    for cls, file, its in ((DRLImages, path, "drl_toy"), (MLToy, stored, "drl_toy"), (DRLToy, bundled, "drl_cifar")):
        with pytest.raises(ValueError, match=rf"{file}.* is of {its}: {cls.notebook} takes checkpoints of") as caught:
            begin(cls, checkpoint=file)
        assert "\n" not in str(caught.value)
    assert begin(DRLToy, checkpoint=path).checkpoint == path
    for cls in (DRLImages, DRLInterpolation):
        assert begin(cls, checkpoint=bundled).checkpoint == bundled


def test_a_damaged_or_missing_checkpoint_stops_before_anything_else(begin, tmp_path):
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    for name in ("bad.safetensors", "none.safetensors"):
        with pytest.raises((ValueError, OSError), match=name):
            begin(DRLImages, preset="paper", checkpoint=str(tmp_path / name))


def test_rows_know_their_run_and_a_run_that_saved_something_is_finished(begin, monkeypatch):
    committed = []
    monkeypatch.setattr(results, "show_committed", lambda *args: committed.append(args), raising=False)
    job = begin(DRLToy, seed=5)
    row = job.row("KL", 0.1, 0.01, 3, unit="nats")
    assert (row.se, row.n, row.unit, row.dataset, row.preset, row.seed) == (0.01, 3, "nats", "checkerboard", "smoke", 5)
    assert row.device == results.hardware("cpu")
    job.show([row])
    assert "KL" in begin.shown[-1]
    assert committed == [("drl_toy", "smoke")]
    assert not job.run.folder.exists(), "only judged: no folder"
    job.run.save(1, {}, {})
    job.show([row])
    with pytest.raises(FileNotFoundError, match="no unfinished run"):
        begin(DRLToy, seed=5, resume=True)
