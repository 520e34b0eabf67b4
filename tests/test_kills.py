"""The counting of kills: it must be able to say that a run did not end as it should."""

import json
import os
import subprocess
import sys
from pathlib import Path

import kills
import pytest
import torch

from ebmlib.run import checkpoint

ROOT = Path(__file__).resolve().parents[1]


def test_a_fingerprint_sees_one_bit_and_not_the_seconds(tmp_path):
    torch.set_num_threads(1)
    kills.train(tmp_path / "run", iterations=10)
    path = tmp_path / "run" / "step-00000010.safetensors"
    before = kills.fingerprint(tmp_path / "run")
    objects, meta = checkpoint.load(path)
    checkpoint.save(path, objects, {**meta, "seconds": 99.0})
    assert kills.fingerprint(tmp_path / "run") == before
    changes = [
        lambda o: next(iter(o["net"]["net"].values())).view(torch.int32).bitwise_xor_(1),
        lambda o: o["generators"][0].bitwise_xor_(1),
        lambda o: o["optimizer"]["state"][0]["exp_avg"].view(torch.int32).bitwise_xor_(1),
    ]
    for change in changes:
        changed = checkpoint.load(path)[0]
        change(changed)
        checkpoint.save(path, changed, meta)
        assert kills.fingerprint(tmp_path / "run") != before
    checkpoint.save(path, objects, meta)
    (tmp_path / "run" / "log.csv").write_text("step,loss\n")
    assert kills.fingerprint(tmp_path / "run") != before


def test_a_run_killed_before_its_first_checkpoint_begins_again_in_its_folder(tmp_path):
    kills.train(tmp_path / "whole", iterations=5)
    info = json.loads((tmp_path / "whole" / "run.json").read_text())
    for left in ([], [".lock"], [".lock", "run.json"], [".lock", "run.json", ".step-00000005.safetensors.1.tmp"]):
        folder = tmp_path / f"left-{len(left)}"
        folder.mkdir()
        for name in left:
            (folder / name).write_text(json.dumps(info) if name == "run.json" else "1")
        kills.train(folder, iterations=5)
        assert kills.fingerprint(folder) == kills.fingerprint(tmp_path / "whole")
        assert not list(folder.glob(".*.tmp"))
    assert len(list(tmp_path.iterdir())) == 5, "no second folder beside"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_kills_are_counted_by_the_command(tmp_path):
    out = tmp_path / "kills.json"
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, kills.__file__, "--kills", "4", "--out", out]
    run = subprocess.run(command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    rows = {row["name"]: row["value"] for row in json.loads(out.read_text())["rows"]}
    assert rows.pop("resumes that ended") == rows.pop("bit-identical ends") == 4
    assert sum(rows.values()) == 4
