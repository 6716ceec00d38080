"""`python -m benchmarks.memory SETTINGS`: how much memory an open recording takes.

SETTINGS is a JSON object of hyperparameters; prints the growth in MiB as a number.
"""

from __future__ import annotations

import json
import sys

import torch

from benchmarks.measure import peak_mib, resident_mib
from benchmarks.scenarios import completed
from torchdeepretina import datas


def main() -> None:
    """Open a recording, read windows from all of it, and print what that took."""
    hyps = completed(json.loads(sys.argv[1]))
    before, peak_before = resident_mib(), peak_mib()
    data = datas.open_data(hyps, torch.device("cpu"))
    n_samples = len(data.train)
    for first in range(0, n_samples, hyps.img_shape[0]):
        data.train.batch(torch.arange(first, first + 1))
    peak = peak_mib() if peak_mib() > peak_before else resident_mib()
    print(peak - before)


if __name__ == "__main__":
    main()
