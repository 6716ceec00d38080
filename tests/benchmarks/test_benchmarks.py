"""The benchmarks compare like with like, and write what they measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.peers.models import RetinaCNN, copy_weights, image_network
from benchmarks.scenarios import DENSE, DIGITS, PLAIN16, RECIPE, TINY10, completed
from benchmarks.table import Row, write_results
from gridrun.plugins import library_of
from gridrun.training.data import DataInfo
from gridrun.training.models import build_model

SMALL = {"dataset": "any", "img_shape": [4, 20, 20], "chans": [3, 2], "noise": 0.0}
SMALL_RETINA = SMALL | {"stim_type": "any"}
CENTERS = [(9, 10), (2, 19)]
CASES: dict[str, dict[str, Any]] = {
    "dense": DENSE | SMALL_RETINA | {"ksizes": [7, 5]},
    "dense per channel": DENSE | SMALL_RETINA | {"ksizes": [7, 5], "bnorm_d": 2},
    "recipe": RECIPE | SMALL_RETINA | {"ksizes": [7, 5, 5]},
    "Tiny10": TINY10 | {"dataset": "any"},
    "PlainN": PLAIN16 | {"dataset": "any"},
    "digits": DIGITS,
}


@pytest.mark.parametrize("case", CASES)
def test_peer_equals_model(case: str) -> None:
    """With equal weights and no noise a peer's model gives the project's outputs."""
    hyps = completed(CASES[case])
    library = library_of(hyps.model_type)
    assert library is not None
    info = DataInfo(2, {}, {}, (), centers=CENTERS)
    torch.manual_seed(0)
    ours = build_model(library, hyps, info).double()
    settings = hyps.model_dump(mode="json")
    is_retina = "stim_type" in settings
    plain: torch.nn.Module = (
        RetinaCNN(settings, 2, CENTERS) if is_retina else image_network(settings, 2)
    )
    plain = plain.double()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    copy_weights(ours, plain)
    x = torch.randn(6, *hyps.img_shape, dtype=torch.float64)
    for is_training in (True, False):  # the second by the statistics of the first
        ours.train(is_training)
        plain.train(is_training)
        difference = (ours(x) - plain(x)).detach().abs().max()
        assert float(difference) < 1e-9


def test_results_are_written(tmp_path: Path) -> None:
    """The files hold every row, judged by its own sense; a smoke run judges none."""
    rows = [
        Row("a group", "speed", 30.0, "×", ">=", 20, {"batch": 128}),
        Row("a group", "delay", 2.0, "s", "<=", 1),
        Row("a group", "for information", 7.0, "ms"),
        Row("another", "absent peer", None, "× not installed", ">=", 20),
    ]
    write_results(tmp_path, rows, {"cores": 2}, is_quick=False)
    record = json.loads((tmp_path / "results.json").read_text())
    assert [row["passed"] for row in record["rows"]] == [True, False, None, False]
    assert [row["target"] for row in record["rows"][:3]] == [">= 20", "<= 1", None]
    table = (tmp_path / "results.md").read_text()
    assert "| speed | >= 20 × | 30 × | 1.5 | yes |" in table
    assert "| delay | <= 1 s | 2 s | 0.5 | no |" in table
    assert (tmp_path / "results.png").stat().st_size > 0
    write_results(tmp_path, rows, {"cores": 2}, is_quick=True)
    record = json.loads((tmp_path / "results.json").read_text())
    assert {row["passed"] for row in record["rows"]} == {None}
