"""Result rows: what is refused, the table, the JSON twin through a real papermill run, files, means over seeds."""

import json
import math
import re
import stat
import subprocess
import sys
from dataclasses import FrozenInstanceError, asdict, replace

import nbformat
import numpy as np
import pytest
import torch
from bs4 import BeautifulSoup
from commit import git_commit
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from scipy import stats

from ebmlib.page import results, shown
from ebmlib.page.results import Row

FULL = Row(
    "FID (Fashion-CNN features)", 12.3456, 0.0678, 2048, "", 9.58, "Table 1", "Fashion-MNIST", "EMA weights, K = 30",
    "gpu", 3, "CPU, 1 thread, model", 61.5,
)  # fmt: skip
PLAIN = Row("log-likelihood", -1.0 / 3.0, unit="nats", paper="not given")


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        (dict(name=""), "name"),
        (dict(value=math.nan), "'loss': value must be finite, got nan"),
        (dict(value="3.2"), "'loss': value must be a number, got '3.2'"),
        (dict(value=True), "value"),
        (dict(se=math.nan), "'loss': se must be finite and at least 0, got nan"),
        (dict(se=-0.1), "se"),
        (dict(paper=[1]), "paper"),
        (dict(n=0), "'loss': n must be finite and at least 1, got 0"),
        (dict(n=2.5), "n"),
        (dict(seed=[0, "1"]), "'loss': seed must be an integer, got '1'"),
        (dict(unit=None), "'loss': unit must be a string, got None"),
        (dict(device=torch.device("cpu")), "device"),
    ],
)
def test_a_wrong_row_is_refused_in_one_sentence_that_names_it(fields, named):
    with pytest.raises(ValueError, match=re.escape(named)) as caught:
        Row(**{"name": "loss", "value": 1.0, **fields})
    assert "\n" not in str(caught.value)


def test_numbers_of_other_libraries_become_plain_ones():
    row = Row("loss", np.float32(0.5), se=np.float64(0.25), n=np.int64(7), paper=2, seed=(np.int32(0), 1), seconds=3)
    assert json.loads(json.dumps(asdict(row))) == asdict(row)
    assert (row.value, row.se, row.n, row.paper, row.seed, row.seconds) == (0.5, 0.25, 7, 2.0, [0, 1], 3.0)
    assert {type(v) for v in (row.value, row.se, row.paper, row.seconds)} == {float}
    with pytest.raises(FrozenInstanceError):
        row.value = 1.0


def test_hardware_says_what_torch_uses():
    said = results.hardware()
    threads = torch.get_num_threads()
    assert re.fullmatch(rf"CPU, {threads} threads?, \S.*", said)
    assert ("threads" in said) == (threads != 1)


@pytest.mark.parametrize(
    ("value", "se", "text"),
    [
        (12.3456, 0.0678, "12.346 ± 0.068"),
        (12.3456, None, "12.35"),
        (7.999488000000001, 4.4e-16, "7.999"),  # only the float's rounding
        (25.0, 0.0, "25"),
        (4.07216, 0.00083, "4.07216 ± 0.00083"),
        (-400350.0, 2768.0, "-400400 ± 2800"),
        (0.5, 0.0996, "0.50 ± 0.10"),
        (-0.001, 0.34, "0.00 ± 0.34"),
        (1234.5, 56.7, "1234 ± 57"),  # Python rounds a half to even
        (0.0, 0.01, "0.000 ± 0.010"),
        (1.234e-7, 5.6e-9, "(1.234 ± 0.056)e-7"),
        (2.5e7, 1.3e6, "(2.50 ± 0.13)e7"),
        (1e-6, 2.4e-5, "(0.1 ± 2.4)e-5"),
    ],
)
def test_a_quantity_is_rounded_by_its_error(value, se, text):
    assert results.quantity(value, se) == text


def cells(rows) -> list[list[str]]:
    """Text of each table cell, by row."""
    page = BeautifulSoup(results.as_html(rows), "html.parser")
    return [[cell.text for cell in line.find_all(["td", "th"])] for line in page.find_all("tr")]


def test_the_table_sets_the_paper_beside_this_run():
    head, full, plain = cells([FULL, PLAIN])
    assert head == ["result", "paper", "this run", "n", "data set", "preset", "hardware"]
    assert full == [
        "FID (Fashion-CNN features)EMA weights, K = 30", "9.58Table 1", "12.346 ± 0.068", "2,048", "Fashion-MNIST",
        "gpuseed 3", "CPU, 1 thread, model61.5 s",
    ]  # fmt: skip
    assert plain == ["log-likelihood [nats]", "not given", "-0.3333", "", "", "", ""]
    assert cells([PLAIN])[0] == ["result", "paper", "this run"]  # columns that are empty throughout are left out
    text = results.as_text([FULL, PLAIN])
    assert [len(re.split(r"  +", line)) for line in text.splitlines()] == [7, 7, 3]


def test_the_table_is_escaped_and_scrolls_by_itself():
    nasty = '<script>alert("1 & 2")</script>'
    texts = dict.fromkeys(("paper", "source", "protocol", "dataset", "preset", "device"), nasty)
    rows = [Row(nasty, 1.0, **texts)]
    assert cells(rows)[1] == [nasty * 2, nasty * 2, "1", nasty, nasty, nasty]
    page = BeautifulSoup(results.as_html(rows), "html.parser")
    assert page.script is None
    assert "overflow-x: auto" in page.div["style"]
    assert {"role", "aria-label", "tabindex"} <= set(page.div.attrs)  # what scrolls needs a name and the keyboard


def test_no_name_becomes_markup_or_a_formula(monkeypatch):
    nasty, pages = "folder:/a <b>& $x^2$ | c", []
    monkeypatch.setattr(shown, "show", lambda page, text, **_: pages.append(page))
    shown.banner(nasty)
    shown.table([nasty], [[nasty]], fold=nasty)
    results.show([Row(nasty, 1.0, **dict.fromkeys(("paper", "source", "protocol", "dataset", "device"), nasty))])
    for page, times in zip(pages, (1, 3, 6), strict=True):
        soup = BeautifulSoup(page, "html.parser")
        assert soup.b is None
        assert soup.text.count(nasty) == times
        assert {text for text in soup.find_all(string=re.compile(r"\$"))} == {"$"}, "MathJax: in elements of their own"


def test_show_prints_in_plain_python():
    code = "from ebmlib.page import results; results.show([results.Row('loss', 1.5, .25, paper=2)])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "result  paper  this run\nloss    2      1.50 ± 0.25\n"
    assert done.stderr == ""


@pytest.mark.parametrize("rows", [[], [FULL, asdict(PLAIN)]])
def test_only_rows_are_shown_and_saved(rows, tmp_path):
    for use in (results.show, results.as_text, results.mean_rows, lambda r: results.save(tmp_path / "r.json", r)):
        with pytest.raises(ValueError, match="non-empty list of Row"):
            use(rows)
    assert not list(tmp_path.iterdir())


SHOW_FIRST = "from ebmlib.page.results import Row, show\nshow([Row('a', 1 / 3, .1, 4, seed=[0, 1])])"
SHOW_SECOND = "show([Row('b', 2.5, paper='none'), Row('c', 1e-300)]); show([Row('committed', 3.0)], own=False)"


def papermill(folder, *sources, check=True):
    """The notebook with these cells, executed by the real papermill."""
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    source, out = folder / "in.ipynb", folder / "out.ipynb"
    notebook = new_notebook(cells=[new_markdown_cell("# Title"), *map(new_code_cell, sources)], metadata=metadata)
    nbformat.write(notebook, source)
    command = [sys.executable, "-m", "papermill", source, out, "-k", "python3", "--execution-timeout", "120"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode == 0) == check, done.stderr
    return out


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    return papermill(tmp_path_factory.mktemp("good"), SHOW_FIRST, "1 + 1", SHOW_SECOND)


def test_the_snippet_of_how_to_run_means_the_runs_own_rows_over_their_seeds(executed, tmp_path, monkeypatch, capsys):
    page = (results.COMMITTED.parents[1] / "book" / "how_to_run.md").read_text("utf-8")
    (snippet,) = re.findall(r"```python\n(from ebmlib.page import results\n.*?)```", page, re.S)
    for seed in (0, 1, 2):
        rows = [asdict(Row("KL", 1.0 + seed, unit="nats", preset="quick", seed=seed))]

        def edit(notebook, rows=rows):
            notebook["cells"][1]["outputs"][0]["data"][results.MIME] = rows
            notebook["cells"][3]["outputs"][0]["data"].pop(results.MIME)  # as the committed rows are shown

        edited(executed, tmp_path / f"toy-{seed}.ipynb", edit)
    monkeypatch.chdir(tmp_path)
    exec(snippet, {})
    assert capsys.readouterr().out.split() == ["KL", "2.00", "±", "0.58", "nats", "quick"]


def test_an_executed_notebook_gives_its_rows_back_exactly(executed):
    expected = [Row("a", 1 / 3, 0.1, 4, seed=[0, 1]), Row("b", 2.5, paper="none"), Row("c", 1e-300)]
    assert results.read(executed) == expected
    (output,) = nbformat.read(executed, 4).cells[1].outputs
    assert {"text/html", "text/plain", results.MIME} == set(output.data)
    assert output.data["text/html"] == results.as_html(expected[:1])


def test_a_failed_notebook_is_refused_though_it_shows_results(tmp_path):
    out = papermill(tmp_path, SHOW_FIRST, "raise RuntimeError('energy\\ndiverged')", SHOW_SECOND, check=False)
    with pytest.raises(ValueError, match=r"out\.ipynb.*cell 3 failed with RuntimeError: energy diverged\.$") as caught:
        results.read(out)
    assert "\n" not in str(caught.value)


def edited(source, target, edit):
    notebook = json.loads(source.read_text())
    edit(notebook)
    target.write_text(json.dumps(notebook))
    return target


def mark(status):
    return lambda notebook: notebook["cells"][2]["metadata"]["papermill"].update(status=status)


def by_hand(notebook):
    """As Jupyter leaves a notebook whose first cell was run again after the others, without papermill's marks."""
    notebook["metadata"].pop("papermill")
    for cell, count in zip(notebook["cells"], (None, 3, 1, 2)):
        cell["metadata"].pop("papermill", None)
        cell.update({"execution_count": count} if count else {})


def row_with(**columns):
    return lambda notebook: notebook["cells"][1]["outputs"][0]["data"][results.MIME][0].update(columns)


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (mark("failed"), "cell 3 is marked failed"),
        (mark("pending"), "cell 3 is marked pending"),
        (mark("running"), "cell 3 is marked running"),  # killed in the middle
        (lambda n: n["cells"][2].update(execution_count=None), "cell 3 was not run"),
        (
            lambda n: n["cells"][2].update(execution_count=4),
            "cell 3 was run in another order (run 4 of the kernel, not 2)",
        ),
        (by_hand, "cell 2 was run in another order (run 3 of the kernel, not 1)"),
        (lambda n: n["cells"][0]["metadata"].update(tags=[results.ERROR_TAG]), "papermill marked it as failed"),
        (lambda n: n["metadata"]["papermill"].update(exception=True), "papermill marked it as failed"),
        (lambda n: [cell.update(outputs=[]) for cell in n["cells"][1:]], "no results"),
        (row_with(speed=3), "edited.ipynb, cell 2: these are not rows of results"),
        (row_with(value=math.nan), "'a': value must be finite"),
        (lambda n: n.pop("cells"), "edited.ipynb is not a notebook"),
    ],
)
def test_an_unfinished_or_mangled_notebook_is_refused(executed, tmp_path, edit, named):
    target = edited(executed, tmp_path / "edited.ipynb", edit)
    with pytest.raises(ValueError, match=re.escape(named)) as caught:
        results.read(target)
    assert "\n" not in str(caught.value)


def test_a_failure_that_the_notebook_announces_is_not_one(executed, tmp_path):
    error = {"output_type": "error", "ename": "ValueError", "evalue": "shown on purpose", "traceback": []}

    def fail(notebook, tags):
        notebook["cells"][2].update(outputs=[error])
        notebook["cells"][2]["metadata"]["tags"] = tags

    assert results.read(edited(executed, tmp_path / "a.ipynb", lambda n: fail(n, ["raises-exception"])))
    with pytest.raises(ValueError, match="cell 3 failed with ValueError: shown on purpose"):
        results.read(edited(executed, tmp_path / "b.ipynb", lambda n: fail(n, [])))


def test_what_is_not_there_is_named(tmp_path):
    for use in (results.read, results.load):
        with pytest.raises(FileNotFoundError, match=r"none\.ipynb"):
            use(tmp_path / "none.ipynb")


def test_saved_rows_come_back_with_their_meta(tmp_path):
    path, meta = tmp_path / "r.json", {"commit": "abc", "seeds": [0, 1], "nested": {"é": None}}
    results.save(path, [FULL, PLAIN], **meta)
    assert results.load(path) == ([FULL, PLAIN], meta)
    assert list(tmp_path.iterdir()) == [path]
    assert stat.S_IMODE(path.stat().st_mode) & 0o044  # others may read it


def test_a_different_file_is_kept(tmp_path):
    path = tmp_path / "r.json"
    results.save(path, [FULL], commit="abc")
    before, inode = path.read_bytes(), path.stat().st_ino
    results.save(path, [FULL], commit="abc")  # the same content is no conflict and writes nothing
    assert path.stat().st_ino == inode
    for rows, meta in (([PLAIN], {"commit": "abc"}), ([FULL], {"commit": "abd"})):
        with pytest.raises(RuntimeError, match=r"r\.json exists and holds other results"):
            results.save(path, rows, **meta)
    assert path.read_bytes() == before
    results.save(path, [PLAIN], overwrite=True)
    assert results.load(path) == ([PLAIN], {})


@pytest.mark.parametrize("meta", [{"x": math.nan}, {"x": torch.tensor(1)}, {"x": {1, 2}}])
def test_meta_that_json_cannot_hold_writes_nothing(tmp_path, meta):
    with pytest.raises((TypeError, ValueError), match="JSON"):
        results.save(tmp_path / "r.json", [FULL], **meta)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "r.json"
    results.save(path, [FULL])

    def full(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(results.Path, "write_text", full)
    with pytest.raises(OSError, match="disk full"):
        results.save(path, [PLAIN], overwrite=True)
    assert list(tmp_path.iterdir()) == [path]
    assert results.load(path) == ([FULL], {})


@pytest.mark.parametrize("text", ["[]", "{}", '{"meta": {}, "rows": {}}', '{"meta": {}, "rows": [{"name": "a"}]}', "{"])
def test_a_damaged_file_is_named(tmp_path, text):
    (tmp_path / "r.json").write_text(text)
    for use in (results.read, results.load):
        with pytest.raises(ValueError, match=r"r\.json"):
            use(tmp_path / "r.json")


def test_the_mean_over_seeds_has_the_standard_error_of_the_mean():
    values = [3.0, 4.5, 3.5, 7.25]
    group = [replace(FULL, value=v, seed=10 + i, seconds=1.5 * i) for i, v in enumerate(values)]
    mean, alone = results.mean_rows([group[0], PLAIN, *group[1:]])
    assert alone == PLAIN
    assert mean.se == pytest.approx(stats.sem(values), rel=1e-12)
    assert mean == replace(FULL, value=np.mean(values), se=mean.se, seed=[10, 11, 12, 13], seconds=2.25)
    assert cells([mean, FULL])[1][-1].endswith("mean 2.25 s")  # the table says what the seconds are
    assert "mean" not in cells([mean, FULL])[2][-1]


def test_a_file_of_rows_has_means_only_where_there_are_several_seeds():
    """A lone row, saved as its own mean, would stand there twice."""
    pair = [FULL, replace(FULL, seed=4, value=1.0)]
    rows = [*pair, PLAIN]
    saved = results.with_means(rows)
    assert saved == [results.mean_rows(pair)[0], *rows]
    assert results.with_means([PLAIN]) == [PLAIN]
    of_samples = replace(FULL, protocol="of three sampling seeds", seed=[1, 2, 3])
    assert results.with_means([of_samples, *rows]) == [saved[0], of_samples, *rows]
    assert results.summary(saved) == [saved[0], PLAIN]
    assert results.summary(rows) == rows
    other = replace(FULL, seed=9)  # of the same protocol, and not in the mean
    assert results.summary([*saved, other]) == [saved[0], PLAIN, other]


def test_only_rows_of_one_protocol_are_averaged():
    for key in ("unit", "paper", "source", "dataset", "protocol", "preset"):
        pair = [FULL, replace(FULL, seed=4, **{key: "other"})]
        assert results.mean_rows(pair) == pair
    mixed = replace(FULL, seed=4, n=100, device="GPU", seconds=None)
    (mean,) = results.mean_rows([FULL, mixed])
    assert (mean.n, mean.seconds, mean.device) == (None, None, "CPU, 1 thread, model; GPU")


@pytest.mark.parametrize("seed", [3, None, [4, 5]])
def test_a_repeated_or_missing_seed_is_refused(seed):
    with pytest.raises(ValueError, match="a mean over seeds needs"):
        results.mean_rows([FULL, replace(FULL, seed=seed, value=1.0)])


def test_the_committed_rows_are_shown_where_they_are_of_another_preset(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(results, "COMMITTED", tmp_path)
    results.show_committed("toy", "quick")
    assert "no committed rows" in capsys.readouterr().out
    rows = [Row("KL", value, preset="paper", seed=k) for k, value in enumerate((0.1875, 0.3125))]
    results.save(tmp_path / "toy.json", results.with_means(rows))
    results.show_committed("toy", "quick")
    said = capsys.readouterr().out
    assert "0.250 ± 0.062" in said
    assert "0.1875" not in said  # a single seed
    results.show_committed("toy", "paper")
    assert capsys.readouterr().out == ""


def test_the_commit_is_the_last_one_that_changed_more_than_numbers(tmp_path):
    def git(*arguments):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments], cwd=tmp_path, check=True)

    (tmp_path / "data" / "results").mkdir(parents=True)
    (tmp_path / "code").write_text("1")
    git("init", "-q")
    git("add", "code")
    git("commit", "-q", "-m", "Begin")
    commit = git_commit(tmp_path)
    assert len(commit) == 12
    (tmp_path / "data" / "results" / "rows").write_text("1")
    git("add", "data")
    assert git_commit(tmp_path) == commit
    git("commit", "-q", "-m", "Rows")
    assert git_commit(tmp_path) == commit
    weights = tmp_path / "data" / "checkpoints"
    weights.mkdir()
    for name in ("drl_cifar10", "fashion_cnn"):  # what a run writes, and a judge, which rows depend on
        (weights / f"{name}.safetensors").write_text("1")
    git("add", str(weights / "drl_cifar10.safetensors"))
    git("commit", "-q", "-m", "Weights of a run")
    assert git_commit(tmp_path) == commit
    git("add", "data")
    assert git_commit(tmp_path) == f"{commit}-dirty"
    git("commit", "-q", "-m", "A judge")
    commit = git_commit(tmp_path)
    (tmp_path / "code").write_text("2")
    assert git_commit(tmp_path) == f"{commit}-dirty"
    git("commit", "-q", "-a", "-m", "More")
    assert git_commit(tmp_path) != commit


def test_rows_of_a_notebook_from_an_earlier_version_are_read(tmp_path):
    row = {"name": "loss", "value": 1.5, "se": 0.25, "seed": 0}
    output = {"output_type": "display_data", "metadata": {}, "data": {"application/vnd.ebmlib.results+json": [row]}}
    cell = {"cell_type": "code", "source": "", "metadata": {}, "execution_count": 1, "outputs": [output]}
    path = tmp_path / "old.ipynb"
    path.write_text(json.dumps({"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    assert results.read(path) == [Row(**row)]
