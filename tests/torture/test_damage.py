"""Damaged files of a sweep: none is used, the run goes back and comes to the same."""

from __future__ import annotations

import json
import random
import shutil
import signal
from pathlib import Path

import pytest
from torture.conftest import Scenario, count, random_of

from gridrun.cli import main
from gridrun.errors import CheckpointError
from gridrun.store import RunFolder

N_FLIPS, N_CUTS, N_ZEROS = count(1000, 16), count(200, 4), count(50, 3)
TRIALS = [("flip", i) for i in range(N_FLIPS)]
TRIALS += [("cut", i) for i in range(N_CUTS)]
TRIALS += [("zeros", i) for i in range(N_ZEROS)]


@pytest.fixture(scope="module")
def halfway(
    scenarios: dict[str, Scenario], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[Path]]:
    """Sweeps of each library that were killed late, all runs with checkpoints."""
    found: dict[str, list[Path]] = {}
    for name, scenario in scenarios.items():
        found[name] = []
        for part in range(12):
            at = scenario.n_calls * (part + 4) // 17
            root = tmp_path_factory.mktemp(f"{name}-{part}")
            assert scenario.run(root, at=at).code == -signal.SIGKILL
            if of_unfinished(root / "sweep", "checkpoints/epoch_*.pt"):
                found[name].append(root / "sweep")
        assert len(found[name]) >= 3
    return found


def of_unfinished(sweep: Path, pattern: str) -> list[Path]:
    """Files of runs that are still to be continued, which have an index."""
    return [
        path
        for record in sorted(sweep.glob("sweep_*/run.json"))
        if json.loads(record.read_text(encoding="utf-8"))["state"] != "done"
        and (record.parent / "checkpoints" / "index.json").exists()
        for path in sorted(record.parent.glob(pattern))
    ]


def damage(path: Path, how: str, chance: random.Random) -> None:
    """Flip a bit, cut the end off, or fill a stretch with zeros."""
    content = bytearray(path.read_bytes())
    where = chance.randrange(len(content))
    if how == "flip":
        content[where] ^= 1 << chance.randrange(8)
    elif how == "cut":
        del content[where:]
    else:
        end = min(len(content), where + chance.choice([1, 64, 4096]))
        content[where:end] = bytes(end - where)
    path.write_bytes(content)


@pytest.mark.parametrize(("how", "trial"), TRIALS)
def test_damaged_checkpoints(
    scenarios: dict[str, Scenario],
    halfway: dict[str, list[Path]],
    root: Path,
    how: str,
    trial: int,
) -> None:
    """Last, last but one or best: a damaged one is told, and trained again."""
    chance = random_of("damage", how, trial)
    name = chance.choice(sorted(scenarios))
    shutil.copytree(chance.choice(halfway[name]), root / "sweep")
    path = chance.choice(of_unfinished(root / "sweep", "checkpoints/epoch_*.pt"))
    before = path.read_bytes()
    damage(path, how, chance)
    epoch = int(path.stem.removeprefix("epoch_"))
    if path.read_bytes() != before and _is_indexed(path):
        with pytest.raises(CheckpointError, match="damaged"):
            RunFolder(path.parent.parent).read_checkpoint(epoch)
    scenarios[name].finish(root)


def _is_indexed(path: Path) -> bool:
    index = json.loads((path.parent / "index.json").read_text(encoding="utf-8"))
    return path.name in index["files"]


@pytest.mark.parametrize("trial", range(count(100, 6)))
def test_damaged_index(
    scenarios: dict[str, Scenario],
    halfway: dict[str, list[Path]],
    root: Path,
    trial: int,
) -> None:
    """The checkpoints' own index may be damaged too."""
    chance = random_of("index", trial)
    name = chance.choice(sorted(scenarios))
    shutil.copytree(chance.choice(halfway[name]), root / "sweep")
    path = chance.choice(of_unfinished(root / "sweep", "checkpoints/index.json"))
    damage(path, chance.choice(["flip", "cut", "zeros"]), chance)
    scenarios[name].finish(root)


@pytest.mark.parametrize("name", ["run.json", "hyperparams.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null"])
def test_damaged_records(
    scenarios: dict[str, Scenario],
    halfway: dict[str, list[Path]],
    root: Path,
    name: str,
    content: bytes,
) -> None:
    """A run's records are written anew; what was trained stays."""
    shutil.copytree(halfway["images"][-1], root / "sweep")
    for path in (root / "sweep").glob(f"*/{name}"):
        path.write_bytes(content)
    scenarios["images"].finish(root)


def test_repair(
    scenarios: dict[str, Scenario], root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Lost tables, a lost sweep.json and leftovers are mended; damage is named."""
    scenario = scenarios["images"]
    sweep = root / "sweep"
    shutil.copytree(scenario.finished, sweep)
    runs = sorted(path for path in sweep.iterdir() if path.is_dir())
    (sweep / "results.csv").unlink()
    (sweep / "summary.csv").write_text("nonsense", encoding="utf-8")
    (sweep / "sweep.json").write_text("{", encoding="utf-8")
    (runs[0] / "claim").write_text("{}", encoding="utf-8")
    (runs[1] / ".run.json.tmp").write_text("{", encoding="utf-8")
    (runs[1] / "checkpoints" / ".epoch_0001.pt.tmp").write_bytes(b"x")
    assert main(["repair", str(sweep)]) == 0
    said = capsys.readouterr().out
    assert "sweep.json" in said
    assert "dead process" in said
    scenario.finish(root)
    (path, *_) = (runs[2] / "checkpoints").glob("epoch_*.pt")
    damage(path, "flip", random_of("repair"))
    assert main(["repair", str(sweep)]) == 1
    said = capsys.readouterr().out
    assert str(path) in said
    assert "counts as interrupted" in said
    scenario.finish(root)
    assert main(["repair", str(sweep)]) == 0
    (runs[1] / "metrics.csv").write_text("epoch,loss\n1,x\n", encoding="utf-8")
    assert main(["repair", str(sweep)]) == 1
    assert f"remove {runs[1]}" in capsys.readouterr().out
    shutil.rmtree(runs[1])  # as it says
    scenario.finish(root)
    assert main(["repair", str(sweep)]) == 0
