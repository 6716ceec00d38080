"""What `executor_args` may hold, on the command line and in the file."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
from strategies import IMAGES, OF_SET, completed

from gridrun.cli import main
from gridrun.cli.run import cluster_options
from gridrun.config import complete
from gridrun.config.cluster_args import RayArgs, SlurmArgs
from gridrun.errors import ConfigError
from gridrun.executors.slurm import Slurm, n_cores, sbatch_options
from gridrun.plugins import libraries
from gridrun.request import read_request
from gridrun.store import SweepFolder


def problem(executor: str, **args: Any) -> str:
    """What is said of the options of a cluster."""
    given = {**IMAGES, "executor": executor, "executor_args": args}
    _, problems = complete(given, libraries()["imgclass"].schema)
    ((key, text),) = problems
    assert key == "executor_args"
    return text


@pytest.mark.parametrize(
    ("executor", "args", "expected"),
    [
        ("slurm", {"partiton": "a"}, "of slurm (did you mean 'partition'?); known: "),
        ("slurm", {"address": "a"}, "unknown option 'address' of slurm; known: "),
        ("ray", {"num_cpu": 1}, "of ray (did you mean 'num_cpus'?); known: address,"),
        ("slurm", {"partition": 3}, "partition: expected text without spaces, or null"),
        ("slurm", {"partition": "a\nb"}, 'got "a\\nb"'),
        (
            "slurm",
            {"time": "soon"},
            'time: expected minutes or "hours:minutes:seconds"',
        ),
        ("slurm", {"time": 0}, "time: expected minutes"),
        ("slurm", {"mem": "8 GB"}, 'mem: expected an integer ≥ 1 or text such as "8G"'),
        ("slurm", {"cpus_per_task": 0}, "cpus_per_task: expected an integer ≥ 1"),
        ("slurm", {"gpus_per_node": True}, "gpus_per_node: expected an integer ≥ 1"),
        ("slurm", {"max_array_size": "2"}, 'integer ≥ 1, or null; got "2"'),
        ("slurm", {"setup": ["a\nb"]}, "setup: expected a line of text or a list"),
        ("slurm", {"extra": {"--exclusive": True}}, "extra: expected an object such"),
        ("slurm", {"extra": {"array": "0-3"}}, "extra: array is set by gridrun"),
        ("slurm", {"extra": {"mem": "1G"}}, "extra: mem is an option of its own"),
        ("ray", {"num_gpus": -1}, "num_gpus: expected a number ≥ 0"),
        ("ray", {"num_gpus": 1.5}, "num_gpus: above 1 it must be a whole number"),
        ("ray", {"resources": {"tpu": 0}}, "resources: expected an object of numbers"),
        ("ray", {"max_retries": -1}, "max_retries: expected an integer ≥ 0"),
    ],
)
def test_wrong_options_are_told(
    executor: str, args: dict[str, Any], expected: str
) -> None:
    """With the option, what was expected, what was given and what is known."""
    assert expected in problem(executor, **args)


def test_a_wrong_option_is_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message begins with the file and the key; nothing is written."""
    file = tmp_path / "hyperparams.json"
    hyps = {**IMAGES, "executor": "slurm", "executor_args": {"partiton": "a"}}
    file.write_text(json.dumps(hyps))
    assert main(["run", str(file), "--save-root", str(tmp_path / "runs")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {file}: executor_args: unknown option 'partiton'")
    assert [path.name for path in tmp_path.iterdir()] == ["hyperparams.json"]


def test_a_cluster_that_refuses_later_is_exit_code_1(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    write_images: Any,
) -> None:
    """Run folders are there by then: the same command hands them in again."""
    write_images(tmp_path / "data" / "set" / "images.h5")
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, text in {
        "sbatch": 'case "$*" in *--test-only*) ;; *) echo no >&2; exit 1;; esac',
        "squeue": "true",
        "scontrol": "echo MaxArraySize = 10",
    }.items():
        (commands / name).write_text(f"#!/bin/sh\n{text}\n")
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(commands), prepend=":")
    given = {
        "exp_name": "refused",
        **OF_SET,
        "batch_size": 16,
        "n_epochs": 1,
        "lr": 0.1,
    }
    path = tmp_path / "hyperparams.json"
    path.write_text(json.dumps(given | {"data_root": "data"}))
    arguments = ["run", str(path), "--executor=slurm", "--save-root", str(tmp_path)]
    assert main(arguments) == 1
    assert "Slurm takes no jobs" in capsys.readouterr().err
    assert (tmp_path / "refused" / "refused_0" / "run.json").exists()


@pytest.mark.parametrize("executor", ["serial", "process"])
def test_options_of_no_cluster_have_no_effect(executor: str) -> None:
    """They are told as inactive, like other keys."""
    hyps = completed(executor=executor, executor_args={"partition": "a"})
    assert hyps.inactive(frozenset())["executor_args"] == "needs a cluster as executor"


def test_options_that_ray_does_not_heed() -> None:
    """They are told, too."""
    told = completed(executor="ray").inactive(frozenset())
    assert {"workers", "hang_timeout_s"} <= told.keys()
    assert "executor_args" not in told


def parsed(**given: Any) -> dict[str, Any]:
    """The keys that options of the command line set."""
    absent = dict.fromkeys(("executor", "slurm", "ray"))
    return cluster_options(argparse.Namespace(**{**absent, **given}))


def test_options_of_the_command_line() -> None:
    """Values have the type of their option; a dot leads into an object."""
    texts = ["account=123", "time=02:00:00", "cpus_per_task=4", "extra.exclusive=true"]
    assert parsed(slurm=texts) == {
        "executor": "slurm",
        "executor_args": {
            "account": "123",
            "time": "02:00:00",
            "cpus_per_task": 4,
            "extra": {"exclusive": True},
        },
    }
    assert parsed(ray=["num_gpus=0.25"])["executor_args"] == {"num_gpus": 0.25}


@pytest.mark.parametrize(
    "given",
    [
        {"slurm": ["time=1"], "executor": "ray"},
        {"slurm": ["time=1"], "ray": ["num_cpus=1"]},
        {"ray": ["num_cpus=1"], "executor": "process"},
    ],
)
def test_one_executor_at_a_time(given: dict[str, Any]) -> None:
    """Options of another one contradict it."""
    with pytest.raises(ConfigError, match="given together with executor"):
        parsed(**given)


def joined(executor: str, **options: Any) -> Any:
    """executor_args of a file for Slurm and of options."""
    base = {**IMAGES, "executor": "slurm", "executor_args": {"time": 5, "qos": "q"}}
    options = {"executor": executor, "executor_args": options}
    return read_request(base, None, (), options).base["executor_args"]


def test_options_join_those_of_the_file() -> None:
    """Each wins over its own; those for another cluster are left out."""
    assert joined("slurm", time=7) == {"time": 7, "qos": "q"}
    assert joined("ray", num_cpus=2) == {"num_cpus": 2}


@pytest.mark.parametrize(
    ("time", "minutes"),
    [
        (90, 90),
        ("90", 90),
        ("2:00:00", 120),
        ("00:10:01", 11),
        ("10:30", 11),
        ("0:01", 1),
        ("1-2", 26 * 60),
        ("1-00:30", 24 * 60 + 30),
        ("1-00:30:30", 24 * 60 + 31),
    ],
)
def test_times_are_read_as_slurm_reads_them(time: int | str, minutes: int) -> None:
    """Minutes, minutes:seconds, hours:minutes:seconds, days-hours and so on."""
    assert SlurmArgs.model_validate({"time": time}).time_min == minutes


@pytest.mark.parametrize(
    ("keys", "args", "cores", "workers"),
    [
        ({}, {}, 1, 1),
        ({"threads": 2}, {}, 2, 1),
        ({"workers": 3, "threads": 2}, {}, 6, 3),
        ({"threads": 2}, {"cpus_per_task": 5}, 5, 2),
        ({}, {"cpus_per_task": 4, "max_parallel": 3}, 4, 12),
        ({}, {"gpus_per_node": 2}, 2, 2),
    ],
)
def test_places_of_slurm(
    tmp_path: Path,
    keys: dict[str, Any],
    args: dict[str, Any],
    cores: int,
    workers: int,
) -> None:
    """A worker has its threads' cores, or a GPU; max_parallel jobs have as many."""
    hyps = completed(executor="slurm", executor_args=args, **keys)
    assert n_cores(hyps, SlurmArgs.model_validate(args)) == cores
    assert Slurm(SweepFolder(tmp_path), hyps, "refuse").n_workers == workers


def test_options_of_sbatch() -> None:
    """Only what is given, under sbatch's names; `extra` beside it."""
    args = SlurmArgs(partition="main", mem=500, extra={"mail-type": "END"})
    assert sbatch_options(args, 2) == {
        "requeue": True,
        "cpus-per-task": 2,
        "partition": "main",
        "mem": 500,
        "mail-type": "END",
    }


def test_the_defaults_are_those_of_the_design() -> None:
    """A Ray of this machine, an hour of Slurm."""
    assert RayArgs().address is None
    assert SlurmArgs().time_min == 60
