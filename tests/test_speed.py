"""The benchmark of a step: its clock and its referee on what is known, the real command run dry, and the page."""

import itertools
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import peers
import pytest
import speed
import torch

from book import performance
from ebmlib import engine

ROOT = Path(__file__).resolve().parents[1]
INSTALLED = ROOT / "build" / "bench"


def command(*options: str) -> subprocess.CompletedProcess:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), str(INSTALLED)])}
    call = [sys.executable, speed.__file__, *options]
    return subprocess.run(call, env=env, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True)


@pytest.fixture(scope="module")
def dry(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What the real command writes at tiny sizes, without the seconds of compiling."""
    out = tmp_path_factory.mktemp("speed") / "cpu.json"
    ran = command("--dry-run", "--no-compile", "--out", str(out))
    assert ran.returncode == 0, ran.stderr
    return json.loads(out.read_text())


class Clock:
    """A clock that stands still but for what the runs take."""

    now = 0.0

    def __call__(self) -> float:
        return self.now

    def run(self, name: str, order: list[str], seconds: list[float]):
        took = itertools.cycle(seconds)

        def work() -> None:
            order.append(name)
            self.now += next(took)

        return work


def test_contenders_take_turns_and_ratios_are_of_one_round():
    clock, order = Clock(), []
    # The machine is ten times slower in the second round: the ratio within a round does not feel it.
    runs = {"bare": clock.run("bare", order, [1.0, 10.0, 2.0]), "it": clock.run("it", order, [3.0, 30.0, 5.0])}
    seconds = speed.interleaved(runs, 3, clock=clock)
    assert [sorted(order[k : k + 2]) for k in (0, 2, 4)] == [["bare", "it"]] * 3
    assert seconds == {"bare": [1.0, 10.0, 2.0], "it": [3.0, 30.0, 5.0]}
    assert speed.spread(seconds["it"]) == {"min": 3.0, "median": 5.0, "max": 30.0}
    assert speed.against(seconds, "it") == {"bare": {"min": 2.5, "median": 3.0, "max": 3.0}}


def test_nobody_always_follows_the_same_one():
    clock, order = Clock(), []
    speed.interleaved({name: clock.run(name, order, [1.0]) for name in "abcd"}, 40, clock=clock)
    rounds = ["".join(order[k : k + 4]) for k in range(0, len(order), 4)]
    before = {name: {r[r.index(name) - 1] for r in rounds if r[0] != name} for name in "abcd"}
    assert before == {name: set("abcd") - {name} for name in "abcd"}


def test_the_clock_waits_for_the_device_before_and_after():
    clock, order = Clock(), []

    def wait() -> None:  # what a device still had to do falls on nobody before, and on its own run behind
        order.append("wait")
        clock.now += 1.0

    seconds = speed.interleaved({"it": clock.run("it", order, [5.0])}, 1, wait, clock)
    assert order == ["wait", "it", "wait"]
    assert seconds == {"it": [6.0]}


@pytest.fixture
def problem():
    return speed.mlp(torch.device("cpu"), 8, width=16)


def test_every_net_of_the_benchmark_has_its_contenders_agree():
    cpu = torch.device("cpu")
    left_out = peers.missing(*peers.VERSIONS) | {"compiled": "not here"}
    for case in (case for case in speed.cases(cpu, tiny=True) if not case.key.startswith("mlp-1000")):
        problem, runs, reasons = speed.ready(case, cpu, left_out)
        assert reasons == left_out
        assert {"bare", "langevin", "naive"} <= runs.keys()
        frozen, trainable = problem.energy(problem.x), problem.trainable(problem.x)
        torch.testing.assert_close(frozen, trainable)
        assert (frozen.requires_grad, trainable.requires_grad) == (False, True)


def test_who_computes_something_else_is_refused(problem):
    another = lambda x: problem.energy(x) + x.flatten(1).sum(1)
    for slip in ({"a": problem.a / 2}, {"energy": lambda x: -problem.energy(x)}, {"energy": another}):
        for make in (speed.bare, speed.ours):
            with pytest.raises(speed.Refused, match=r"ends a step with noise 0 .* away"):
                speed.check("it", make(problem._replace(**slip)), problem)
    run = speed.ours(problem)
    with pytest.raises(speed.Refused, match=r"ends a step with noise 0\.14"):
        speed.check("it", lambda x, K, b: run(x, K, 1.1 * b), problem)
    with pytest.raises(speed.Refused, match="requires_grad True"):
        speed.check("it", lambda x, K, b: run(x, K, b).requires_grad_(), problem)


def test_who_is_refused_has_a_row_that_says_so_and_no_seconds(monkeypatch):
    cpu = torch.device("cpu")
    case = speed.cases(cpu, tiny=True)[0]
    wrong = lambda problem: speed.ours(problem._replace(a=3 * problem.a))
    broken = lambda problem: 1 / 0
    everyone = {"bare": speed.bare, "langevin": speed.ours, "torchebm": wrong, "compiled": broken}
    monkeypatch.setattr(speed, "contenders", lambda device: everyone)
    rows = {row["contender"]: row for row in speed.measure(case, cpu, {}, tiny=True)}
    assert rows["torchebm"]["not_measured"].startswith("refused: torchebm ends a step")
    assert rows["compiled"]["not_measured"] == "ZeroDivisionError: division by zero"
    assert all("seconds" not in rows[name] for name in ("torchebm", "compiled"))
    assert rows["langevin"]["against"].keys() == {"bare"}
    everyone["ebmkit"] = broken  # only who needs a compiler may fail: anything else is a slip of the benchmark
    with pytest.raises(ZeroDivisionError):
        speed.measure(case, cpu, {}, tiny=True)


def test_a_card_whose_rate_is_not_known_has_no_share():
    for card in ("NVIDIA H100 PCIe", "Another"):
        found = speed.share({}, torch.device("cuda"), card)
        assert found["share"] is None
        assert card in found["share_is"]
    assert speed.share({}, torch.device("cpu"), "CPU")["share_is"].startswith("not measured")


def test_without_the_peers_a_real_run_says_what_to_install(monkeypatch):
    monkeypatch.setattr(peers, "VERSIONS", {"torch": "0.0.1", "not-there": "1.0"})
    monkeypatch.setattr(sys, "argv", ["speed.py"])
    with pytest.raises(SystemExit, match=r"with torch 0\.0\.1; installed is .*; not-there is not installed"):
        speed.main()


def test_a_compiled_contender_goes_through_the_switch_and_never_runs_plainly(problem, monkeypatch):
    from torch._dynamo.backends.debugging import aot_eager

    modes = []
    compile_ = lambda graph, inputs, mode=None: modes.append(mode) or aot_eager(graph, inputs)
    monkeypatch.setattr(engine, "backend", compile_)
    for name, mode in speed.COMPILED.items():
        run = speed.switched(problem, mode)
        speed.check(name, run, problem)
    assert set(modes) == {None, "reduce-overhead"}
    monkeypatch.setattr(engine, "backend", lambda graph, inputs: 1 / 0)
    with pytest.raises(UserWarning, match="runs plainly"):
        [speed.switched(problem, "compile") for _ in range(3)]


@pytest.mark.parametrize("options", [["--dry-run"], ["--only", "mlp-100"], ["--no-compile"]])
def test_only_a_whole_run_is_written_to_where_it_is_committed(monkeypatch, options):
    monkeypatch.setattr(sys, "argv", ["speed.py", *options])
    assert speed.target(speed.options()) == ROOT / "build" / "speed" / "cpu.json"
    monkeypatch.setattr(sys, "argv", ["speed.py"])
    assert speed.target(speed.options()) == ROOT / "data" / "benchmarks" / "cpu.json"


def test_the_dry_command_writes_every_case_and_contender(dry):
    assert dry["meta"]["dry_run"] is True
    assert dry["meta"]["command"] == 'make bench ARGS="--dry-run --no-compile"'
    keys = [case.key for case in speed.cases(torch.device("cpu"), tiny=True)]
    everyone = list(speed.contenders(torch.device("cpu")))
    assert [(row["case"], row["contender"]) for row in dry["rows"]] == list(itertools.product(keys, everyone))
    for row in dry["rows"]:
        if row["contender"] == "compiled":
            assert row["not_measured"] == "left out with --no-compile"
        elif not row["not_measured"]:
            own, bare = row["rounds"], next(r["rounds"] for r in dry["rows"] if r["case"] == row["case"])
            assert len(own) == speed.TINY_ROUNDS
            assert row["seconds"] == {"min": min(own), "median": sorted(own)[1], "max": max(own)}
            if row["contender"] != "bare":
                ratios = sorted(a / b for a, b in zip(own, bare, strict=True))
                assert row["against"]["bare"] == {"min": ratios[0], "median": ratios[1], "max": ratios[2]}
        if row["contender"] in peers.VERSIONS:
            there = row["contender"] in dry["meta"]["versions"]
            assert there == (row["not_measured"] == ""), "a peer that is there is measured"
    assert {row["kind"] for row in dry["growth"]} == {"batch", "K", "resolution"}
    (training,) = dry["training"]
    operations = training["profile"]["operations"]
    shares = [part["share"] for part in operations]
    assert len(shares) == speed.PROFILED
    assert shares == sorted(shares, reverse=True)
    assert 0.5 < sum(shares) <= 1
    assert any("conv" in part["operation"] for part in operations[:3])
    assert training["memory"] is None or training["memory"] > 2**20


@pytest.mark.slow
def test_the_compiled_contender_is_measured_where_a_compiler_is(tmp_path):
    ran = command("--dry-run", "--only", "mlp-100", "--out", str(tmp_path / "x.json"))
    assert ran.returncode == 0, ran.stderr
    rows = {row["contender"]: row for row in json.loads((tmp_path / "x.json").read_text())["rows"]}
    row = rows["compiled"]
    if "InvalidCxxCompiler" in row["not_measured"]:
        pytest.skip(row["not_measured"])
    assert row["not_measured"] == ""


def cells(table: str) -> list[list[str]]:
    rows = re.findall(r"<tr>(.*?)</tr>", table)
    return [re.findall(r"<t[hd].*?>(.*?)</t[hd]>", row) for row in rows]


def test_the_page_is_made_from_what_the_command_wrote(dry, tmp_path):
    (tmp_path / "cpu.json").write_text(json.dumps(dry))
    with pytest.raises(ValueError, match=r"^cpu\.json is of a dry run"):
        performance.substitutions(tmp_path)
    (tmp_path / "cpu.json").write_text(json.dumps(dry | {"meta": dry["meta"] | {"dry_run": False}}))
    page = performance.substitutions(tmp_path)
    assert dry["meta"]["hardware"] in page["speed_cpu_source"]
    shown = cells(page["speed_cpu_steps"])[1:]
    for row, (_, name, took, ratio, _) in zip(dry["rows"], shown, strict=True):
        assert name == row["contender"]
        if row["not_measured"]:
            assert took.startswith("not measured: ")
        else:
            assert performance.seconds(row["seconds"]["median"]) == took.split(" / ")[1]
            assert name == "bare" or ratio.split(" / ")[1] == f"{row['against']['bare']['median']:.2f}"
    assert len(cells(page["speed_cpu_growth"])) == 1 + len(dry["growth"])
    assert f"{dry['training'][0]['flops']:.4g}" in page["speed_cpu_training"]
    first = dry["training"][0]["profile"]["operations"][0]
    assert f"{first['share']:.0%} {first['operation'].removeprefix('aten::')}" in page["speed_cpu_training"]


def test_without_numbers_the_page_says_how_to_get_them(tmp_path):
    page = performance.substitutions(tmp_path)
    assert page["speed_cuda_source"] == 'GPU: not measured. `make bench ARGS="--device cuda"` fills this in.'
    assert [line[-1] for line in cells(page["speed_goals"])[1:]] == ["not measured"] * len(performance.GOALS)


def content(**ratios: dict[str, float]) -> dict:
    """Two cases with these median ratios of a contender to others in the second one, and easy ones in the first."""

    easy = dict.fromkeys(ratios, against(0.1, 0.1, 0.1))
    cases = {"mlp-100": {"bare": {}, **easy}, "wideresnet-64": {"bare": {}, **ratios}}
    rows = [(key, name, found) for key, its in cases.items() for name, found in its.items()]
    medians = lambda found: {other: {"median": value} for other, value in found.items()}
    row = lambda key, name, found: {"case": key, "title": key, "contender": name, "against": medians(found)}
    return {"rows": [row(*given) | {"not_measured": ""} for given in rows]}


def verdicts(device: str, found: dict) -> list[str]:
    contents = {"cpu": None, "cuda": None, device: {"training": [], **found}}
    lines = cells(performance.goals(contents))[1:]
    return [line[-1] for line, goal in zip(lines, performance.GOALS, strict=True) if goal.device == device]


def against(bare: float, torchebm: float, ebmkit: float) -> dict[str, float]:
    return {"bare": bare, "torchebm": torchebm, "ebmkit": ebmkit}


@pytest.mark.parametrize(
    ("langevin", "compiled", "said"),
    [
        (against(1.05, 0.99, 0.99), against(0.99, 0.9, 0.99), ["met", "met", "met", "met"]),
        (against(1.06, 0.99, 0.99), against(1.0, 1.01, 0.9), ["missed", "missed", "met", "missed"]),
        (against(1.0, 0.5, 1.0), against(0.5, 0.5, 1.0), ["met", "met", "missed", "missed"]),
        ({"bare": 1.0, "torchebm": 0.5}, {"bare": 0.5}, ["met", "met", "not measured", "not measured"]),
    ],
)
def test_a_goal_on_a_cpu_is_met_in_the_worst_case_or_missed(langevin, compiled, said):
    assert verdicts("cpu", content(langevin=langevin, compiled=compiled)) == said


def test_goals_on_a_gpu_take_the_fastest_of_ours_and_the_slower_gain():
    slow, fast = {"torchebm": 1.0, "ebmkit": 1.0}, {"torchebm": 0.2, "ebmkit": 0.66}
    found = content(langevin=slow, compiled=fast)
    assert verdicts("cuda", found) == ["met", "met", "not measured"]
    table = performance.goals({"cpu": None, "cuda": {"training": [], **found}})
    assert "1.52 times" in table
    assert "compiled beside ebmkit, wideresnet-64" in table
    assert verdicts("cuda", content(langevin=slow))[1] == "missed"
    share = {"preset": "gpu", "engine": "plain", "share": {"median": 0.25}, "share_is": "of it"}
    assert verdicts("cuda", {**found, "training": [share]})[2] == "met"


def test_training_is_timed_with_every_engine_and_one_that_fails_is_left_out_aloud(monkeypatch):
    def run(preset, mode, *_):
        if "compile" in mode:
            raise RuntimeError("no compiler")
        return {"preset": preset, "engine": mode, "flops": 1.0, "per_second": {"median": 2.0}}

    monkeypatch.setattr(speed, "ProcessPoolExecutor", lambda count, **_: ThreadPoolExecutor(count))
    monkeypatch.setattr(speed, "train", run)
    monkeypatch.setattr(speed.results, "hardware", lambda _: "NVIDIA A100")
    taken = lambda: [row for take in speed.trainings(torch.device("cuda"), tiny=False).values() for row in take()]
    rows = taken()
    assert [(row["preset"], row["engine"]) for row in rows] == [
        (preset, mode) for preset in ("gpu", "paper") for mode in speed.ENGINES["cuda"]
    ]
    assert rows[0]["share"] == {"median": 2.0 / 312e12}
    failed = [row for row in rows if "compile" in row["engine"]]
    told = [line[:2] for line in cells(performance.training({"training": failed}))[1:]]
    assert {reason for _, reason in told} == {"not measured: RuntimeError: no compiler"}
    assert told[-1][0] == "preset paper, engine compile:reduce-overhead+channels-last"
    assert performance.training_share({"training": rows})[0] == 2.0 / 312e12
    monkeypatch.setattr(speed, "ENGINES", speed.ENGINES | {"cuda": ("plain",)})
    monkeypatch.setattr(speed, "train", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        taken()


def test_an_interrupted_run_goes_on_where_commit_and_machine_are_the_same(tmp_path):
    path, about = tmp_path / "cpu.parts", {"commit": "abc", "hardware": "a CPU"}
    first = speed.Parts(path, about, resume=False)
    assert first.take("mlp-100", lambda: [{"seconds": 1.0}]) == [{"seconds": 1.0}]
    with pytest.raises(KeyboardInterrupt):
        first.take("mlp-1000", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    again = speed.Parts(path, about, resume=True)
    assert again.take("mlp-100", lambda: [{"seconds": 2.0}]) == [{"seconds": 1.0}], "measured twice"
    assert again.take("mlp-1000", lambda: [{"seconds": 3.0}]) == [{"seconds": 3.0}]
    assert again.seconds > first.seconds > 0
    with pytest.raises(SystemExit, match="another commit"):
        speed.Parts(path, about | {"commit": "def"}, resume=True)
    anew = speed.Parts(path, about | {"commit": "def"}, resume=False)
    assert anew.take("mlp-100", lambda: [{"seconds": 4.0}]) == [{"seconds": 4.0}]


def test_every_place_of_the_page_is_filled_and_every_number_is_from_a_file(tmp_path):
    page = (ROOT / "book" / "performance.md").read_text()
    named = set(re.findall(r"{{ (\w+) }}", page))
    assert named == performance.substitutions(tmp_path).keys()
    committed = performance.substitutions(ROOT / "data" / "benchmarks")
    assert committed.keys() == named, "what is committed can be read"
    assert not re.search(r"\d+ ?(ms|seconds|GFLOP)", page)
