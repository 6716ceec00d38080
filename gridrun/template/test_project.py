"""Run with `pytest`: the data are sound, and one epoch of the grid can be trained."""

from pathlib import Path

from plugins.datasets.spirals import Spirals

from gridrun import run_sweep

HERE = Path(__file__).parent


def test_classes_are_balanced() -> None:
    """Both spirals have equally many points."""
    for inputs, classes in Spirals(n_samples=40).splits().values():
        assert len(inputs) == len(classes)
        assert classes.mean() == 0.5


def test_the_grid_trains(tmp_path: Path) -> None:
    """Every run of one epoch ends well."""
    sweep = run_sweep(
        HERE / "hyperparams.json",
        HERE / "hyperranges.json",
        ["n_epochs=1", "n_repeats=1"],
        save_root=str(tmp_path),
        executor="serial",
        quiet=True,
    )
    assert sweep.states() == {"done": 4}
