"""Train what a notebook trains on several processes: `accelerate launch -m ebmlib.run.launch NOTEBOOK -p NAME VALUE`.

The code cells run as they stand, up to the end of the first training that has a run folder; `papermill NOTEBOOK ... -p
resume True` then opens its checkpoint. torchrun does in place of `accelerate launch`. What is divided: `parallel`.
"""

import contextlib
import functools
import os
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ebmlib import data
from ebmlib.metrics import images as metrics
from ebmlib.run import parallel, training


class _Trained(BaseException):
    """Ends the cells. Not an Exception: a notebook may catch those."""


def main(argv: Sequence[str]) -> None:
    """Train with papermill's arguments `argv`: a notebook's path and its parameters (-p, -r, -y, -f, -b).

    SystemExit with one sentence if accelerate or papermill is missing or a device with a number is asked for. An error
    in a cell is raised on the first process and is one line of the others.
    """
    try:
        from accelerate import PartialState

        cells, about = prepared(argv)
    except ModuleNotFoundError as error:
        sys.exit(f"ebmlib.run.launch needs {error.name}: pip install 'ebmlib[launch]'")
    device = about["parameters"].get("device")
    if ":" in str(device):
        sys.exit(f"device = {device!r}: every process takes a GPU of its own, so leave the number out")
    state = PartialState(cpu=device == "cpu")  # joins the other processes, and makes this one's GPU the current one
    if device is None and state.device.type == "cpu":  # accelerate may leave a GPU alone; the notebook would not
        cells, about = prepared([*argv, "-p", "device", "cpu"])
    try:
        run = trained(cells, about["input_path"])
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command with -p resume True goes on" if parallel.rank() == 0 else 1)
    except Exception as error:
        if parallel.rank() == 0:
            raise
        sys.exit(f"process {parallel.rank()}: {type(error).__name__}: {error}")
    newest, again = run.checkpoints()[-1], shlex.join(["papermill", *argv, "out.ipynb", "-p", "resume", "True"])
    run.close()
    if parallel.rank() == 0:
        number = "1 process" if parallel.size() == 1 else f"{parallel.size()} processes"
        print(f"Trained on {number}: {newest}\nThe notebook goes on from there with\n  {again}")
    state.destroy_process_group()


def prepared(argv: Sequence[str]) -> tuple[list[str], Mapping[str, Any]]:
    """A notebook's code cells with papermill's cell of parameters among them, and papermill's record of its arguments.

    papermill itself reads them and writes the cell; SystemExit with its word on what it cannot read.
    """
    import nbformat
    from click import ClickException
    from papermill.cli import papermill

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "prepared.ipynb"
        options = ["--prepare-only", "--no-progress-bar", "--log-level", "ERROR"]
        try:
            # "--" first: an option that lacks its value must not take the path for it
            papermill.main([*options, *argv, "--", str(path)], "ebmlib.run.launch", standalone_mode=False)
        except (ClickException, OSError) as error:
            sys.exit(f"ebmlib.run.launch: {error.format_message() if isinstance(error, ClickException) else error}")
        if not path.exists():  # papermill has shown its help
            sys.exit()
        notebook = nbformat.read(path, as_version=4)
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"], notebook.metadata.papermill


def trained(cells: Sequence[str], name: str) -> Any:
    """Execute cells in one namespace until the first training with a run folder is over; returns that run, unfinished.

    Only the first process prints. SystemExit if no cell trains so.
    """
    namespace = {"__name__": "__main__"}
    with contextlib.ExitStack() as stack:
        stack.enter_context(_environment("MPLBACKEND", "Agg"))  # figures have no page here
        if parallel.rank() > 0:
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        import IPython.display as shown

        for module, attribute, new in (
            (training, "fit", _ending(training.fit)),
            (data, "images", _in_turn(data.images)),
            (metrics, "best_extractor", _in_turn(metrics.best_extractor)),
            (shown, "display", _printed),
        ):
            stack.enter_context(_replaced(module, attribute, new))
        try:
            for number, source in enumerate(cells, 1):
                exec(compile(source, f"{name}, code cell {number}", "exec"), namespace)
        except _Trained as over:
            return over.args[0]
    sys.exit(f"{name} trains nothing that a checkpoint keeps while it trains: run it with papermill")


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """A variable for as long as the cells run: whatever is started later is another's."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


@contextlib.contextmanager
def _replaced(module: Any, name: str, new: Any) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, new)
    try:
        yield
    finally:
        setattr(module, name, before)


def _ending(fit: Callable[..., Any]) -> Callable[..., Any]:
    """`fit`, after which the cells end if it had a run: what follows it is the notebook's, on one process."""

    @functools.wraps(fit)
    def ending(*args: Any, **kwargs: Any) -> Any:
        history = fit(*args, **kwargs)
        if kwargs.get("run") is not None:
            raise _Trained(kwargs["run"])
        return history

    return ending


def _in_turn(load: Callable[..., Any]) -> Callable[..., Any]:
    """`load`, on the first process before the others, so that a set or a net's weights are downloaded once."""

    @functools.wraps(load)
    def in_turn(*args: Any, **kwargs: Any) -> Any:
        found: list[Any] = []
        parallel.once(lambda: found.append(load(*args, **kwargs)))
        return found[0] if found else load(*args, **kwargs)

    return in_turn


def _printed(*things: Any, raw: bool = False, **_: Any) -> None:
    """IPython's `display` where there is no page: the plain text."""
    for thing in things:
        print(thing.get("text/plain", "") if raw else thing)


if __name__ == "__main__":
    main(sys.argv[1:])
