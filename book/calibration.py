"""Measures how fast this machine computes: CPU seconds of one thread for a fixed small computation.

`python -m book.calibration` prints them. The limits of `book/notebooks.toml` are seconds of the machine whose number is
`calibration` in that file; on a machine that needs twice as long for this, a notebook may take twice as long.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path


def measured() -> float:
    """Seconds in a process of its own, so that nothing that a caller has imported or set matters."""
    command, root = [sys.executable, "-m", "book.calibration"], Path(__file__).resolve().parents[1]
    return float(subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout)


def seconds() -> float:
    """The least of three runs: chains of a small net as in the toys, and a convolution net's as on images."""
    import torch
    from torch import nn

    torch.set_num_threads(1)
    torch.manual_seed(0)
    small = nn.Sequential(nn.Linear(2, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 1))
    wide = nn.Sequential(nn.Conv2d(1, 32, 3), nn.SiLU(), nn.Conv2d(32, 32, 3), nn.SiLU(), nn.Flatten())
    wide.append(nn.Linear(4608, 1))
    times = []
    for _ in range(3):
        begin = time.process_time()
        for net, x, steps in ((small, torch.randn(256, 2), 1000), (wide, torch.randn(64, 1, 16, 16), 50)):
            for _ in range(steps):
                x = x.detach().requires_grad_()
                x = x - 0.01 * torch.autograd.grad(net(x).sum(), x)[0]
        times.append(time.process_time() - begin)
    return min(times)


if __name__ == "__main__":
    print(f"{seconds():.3f}")
