"""Train what a notebook trains on several processes: `accelerate launch -m ebmlib.run.launch NOTEBOOK -p NAME VALUE`.

The code cells run as they are, up to the end of the first training that has a run folder; `papermill NOTEBOOK ... -p
resume True` then opens its checkpoint. A stage that is trained already is passed over, so that the same command with
`-p resume True` trains the next one. torchrun does in place of `accelerate launch`.
"""

import contextlib
import functools
import io
import os
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

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

    papermill itself reads them and writes the cell; SystemExit with its sentence on what it cannot read.
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
    """Execute cells until the first training with a run folder is over; returns that run. SystemExit if none trains so.

    Only the first process prints.
    """
    fit, namespace = training.fit, {"__name__": "__main__"}

    @functools.wraps(fit)
    def ending(*args: Any, run: Any = None, **kwargs: Any) -> Any:
        before = run.checkpoints() if run else []
        history = fit(*args, run=run, **kwargs)
        if run and (run.parent is None or run.checkpoints() != before):
            raise _Trained(run)
        return history

    quiet = contextlib.redirect_stdout(io.StringIO()) if parallel.rank() else contextlib.nullcontext()
    no_page = mock.patch.dict(os.environ, MPLBACKEND="Agg")
    with quiet, no_page, mock.patch.object(training, "fit", ending):
        try:
            for number, source in enumerate(cells, 1):
                exec(compile(source, f"{name}, code cell {number}", "exec"), namespace)
        except _Trained as over:
            return over.args[0]
    sys.exit(f"{name} trains nothing that a checkpoint keeps while it trains: run it with papermill")


if __name__ == "__main__":
    main(sys.argv[1:])
