"""Runs that other machines train: followed, tried again, or left alone."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import threading
import types
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import pytest

import gridrun.executors.cluster as clusters
from gridrun.claims import Claim, ClaimLost
from gridrun.errors import StorageError
from gridrun.executors import Stopped, ray_post
from gridrun.executors.cluster import ClusterExecutor
from gridrun.executors.deaths import record_death
from gridrun.executors.follow import Follower
from gridrun.executors.node import approved
from gridrun.executors.process import ProcessExecutor
from gridrun.executors.ray_post import Post, train_away
from gridrun.executors.ray_tasks import train_task
from gridrun.executors.submissions import Submission, new_submission, open_submissions
from gridrun.planner import Job
from gridrun.store import RunFolder, SweepFolder
from gridrun.training.cohort import Interrupted
from gridrun.training.event import Event
from gridrun.training.job import train_job

ALL_FINAL = ("done", "failed", "diverged")


@pytest.fixture
def job(
    image_set: Path,
    image_hyps: Callable[..., Any],
    make_folder: Callable[[Any], RunFolder],
) -> Job:
    """A cohort of two runs, not yet trained."""
    hyps = [image_hyps(image_set, lr=lr) for lr in (0.01, 0.02)]
    return Job(
        library="imgclass",
        folders=tuple(str(make_folder(one).path) for one in hyps),
        hyps=tuple(one.model_dump(mode="json") for one in hyps),
        threads=1,
        device="cpu",
        final_states=ALL_FINAL,
    )


def folders(job: Job) -> list[RunFolder]:
    return [RunFolder(Path(path)) for path in job.folders]


def stop_after(n: int) -> tuple[list[Event], Callable[[], bool]]:
    """Events, and what says stop when there are n epochs among them."""
    events: list[Event] = []
    return events, lambda: sum(event.kind == "epoch" for event in events) >= n


def half_trained(job: Job) -> None:
    """Train an epoch of each run."""
    events, is_enough = stop_after(len(job.folders))
    with pytest.raises(Interrupted):
        train_job(job, events.append, is_enough)


# --- following --------------------------------------------------------------------


def test_the_folders_tell_what_workers_tell(job: Job) -> None:
    """Epochs and ends, with their scores."""
    told: list[Event] = []
    followed: list[Event] = []
    follower = Follower([job], lambda event, worker: followed.append(event))
    follower.look()
    assert not followed
    train_job(job, told.append)
    follower.look()
    assert not follower.left([job])
    for kind in ("epoch", "end"):
        ours = [event for event in followed if event.kind == kind]
        theirs = [event for event in told if event.kind == kind]
        assert sorted(ours, key=place) == sorted(theirs, key=place)


def place(event: Event) -> tuple[int, int]:
    return event.number, event.epoch


def test_what_was_there_before_counts_as_done(job: Job) -> None:
    """An interrupted run starts with its epochs; each later one is told once."""
    half_trained(job)
    followed: list[Event] = []
    follower = Follower([job], lambda event, worker: followed.append(event))
    follower.look()
    assert [(event.kind, event.epoch) for event in followed] == [("start", 1)] * 2
    follower.look()
    assert len(followed) == 2
    train_job(job)
    follower.look()
    epochs = [event.epoch for event in followed if event.kind == "epoch"]
    assert sorted(epochs) == [2, 2, 3, 3]


def test_an_earlier_failure_is_no_end_of_a_run_that_is_tried_again(job: Job) -> None:
    """Only what fails from now on has ended."""
    first, second = folders(job)
    for folder in (first, second):
        folder.update(state="failed", error="before")
    retried = dataclasses.replace(job, final_states=("done",))
    follower = Follower([retried], lambda event, worker: None)
    follower.look()
    assert follower.left([retried]) == [retried]
    second.update(state="failed", error="again")
    follower.look()
    assert follower.left([retried]) == [retried.only({str(first.path)})]


def test_other_versions_of_a_worker_are_told_once(
    job: Job, caplog: pytest.LogCaptureFixture
) -> None:
    """With the machine, the package and both versions."""
    for folder in folders(job):
        attempt = {"host": "node7", "versions": {"torch": "1.0"}}
        folder.update(state="done", attempts=[attempt])
    Follower([job], lambda event, worker: None).look()
    texts = [text for text in caplog.messages if "torch 1.0 there" in text]
    assert len(texts) == 1
    assert "trained on node7" in texts[0]


# --- jobs that end too early --------------------------------------------------------


class FakeEngine:
    """An engine whose jobs do as they are told when they are asked about.

    Args:
        work: Done with each cohort.
    """

    n_workers = 1

    def __init__(self, work: Callable[[Job], None]) -> None:
        self.work = work
        self.jobs: dict[str, list[Job]] = {}
        self.cancelled: list[str] = []
        self.is_closed = False

    def submit(self, jobs: Sequence[Job]) -> dict[str, list[Job]]:
        new = {f"{len(self.jobs)}": list(jobs)}
        self.jobs |= new
        return new

    def ended(self, names: Sequence[str], is_urgent: bool) -> Mapping[str, str]:
        for name in names:
            for job in self.jobs[name]:
                self.work(job)
        return dict.fromkeys(names, "as told")

    def cancel(self, names: Sequence[str]) -> None:
        self.cancelled += names

    def close(self) -> None:
        self.is_closed = True


class PatientEngine(FakeEngine):
    """One whose jobs end only when they are cancelled."""

    def ended(self, names: Sequence[str], is_urgent: bool) -> Mapping[str, str]:
        return super().ended([n for n in names if n in self.cancelled], is_urgent)


def run(
    job: Job,
    engine: FakeEngine,
    image_hyps: Callable[..., Any],
    patch: pytest.MonkeyPatch,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[Event]:
    """The events of a job by an engine, without waiting."""
    patch.setattr(clusters, "SECONDS_BETWEEN_LOOKS", 0.0)
    events: list[Event] = []
    hyps = image_hyps(Path("data"), max_attempts=2)
    executor = ClusterExecutor(engine, hyps)
    executor.run([job], lambda event, worker: events.append(event), should_stop)
    return events


def test_jobs_that_end_are_done(
    job: Job, image_hyps: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One submission, and the ends of all runs are told."""
    engine = FakeEngine(train_job)
    events = run(job, engine, image_hyps, monkeypatch)
    assert [event.state for event in events if event.kind == "end"] == ["done"] * 2
    assert len(engine.jobs) == 1
    assert engine.is_closed


def test_jobs_that_keep_ending_too_early_fail_their_runs(
    job: Job, image_hyps: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After max_attempts in a row without a new epoch; each is told once."""
    engine = FakeEngine(lambda job: None)
    events = run(job, engine, image_hyps, monkeypatch)
    assert [event.state for event in events if event.kind == "end"] == ["failed"] * 2
    assert len(engine.jobs) == 2
    for folder in folders(job):
        assert "its job died 2 times in a row" in folder.read()["error"]


def test_a_job_with_new_epochs_is_handed_in_again(
    job: Job, image_hyps: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As often as it takes: an epoch of one run each time."""
    engine = FakeEngine(an_epoch)
    events = run(job, engine, image_hyps, monkeypatch)
    assert [event.state for event in events if event.kind == "end"] == ["done"] * 2
    assert len(engine.jobs) > 2


def an_epoch(job: Job) -> None:
    """Train one epoch of each run, or to the end."""
    events, is_enough = stop_after(len(job.folders))
    with contextlib.suppress(Interrupted):
        train_job(job, events.append, is_enough)


def test_a_stop_cancels_the_jobs(
    job: Job, image_hyps: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And waits until they have ended."""
    engine = PatientEngine(train_job)
    with pytest.raises(Stopped):
        run(job, engine, image_hyps, monkeypatch, lambda: bool(engine.jobs))
    assert engine.cancelled == ["0"]
    assert engine.is_closed


class EndedWorker:
    """A worker that has taken a job and ended; a stop is known when it is looked for.

    Its methods are those of a server and of a process.
    """

    is_known = False

    def start_worker(self, threads: int) -> Any:
        connection, other = Pipe()
        other.send(None)
        threading.Thread(target=lambda: (other.recv(), other.close())).start()
        return self, connection

    def wait(self) -> int:
        self.is_known = True
        return 0

    def kill(self) -> None:
        """It has ended."""


def test_a_worker_that_a_signal_reached_first_has_not_died(job: Job) -> None:
    """Its runs are left as they are, and not failed."""
    worker: Any = EndedWorker()
    executor = ProcessExecutor(worker, n_workers=1, max_attempts=1)
    with pytest.raises(Stopped):
        executor.run([job], lambda event, index: None, lambda: worker.is_known)
    assert [folder.read()["state"] for folder in folders(job)] == ["pending"] * 2


def test_a_death_does_not_undo_what_is_done(job: Job) -> None:
    """A run that ended before its worker's death was noticed stays done."""
    train_job(job)
    folder = folders(job)[0]
    record_death(folder, "its job died")
    assert folder.read()["state"] == "done"
    assert not folder.failure.exists()


# --- on the machine -----------------------------------------------------------------


@pytest.fixture
def mixed(job: Job) -> tuple[Job, RunFolder, RunFolder]:
    """A job with a run that another torch has half-trained, and a fresh one."""
    old, fresh = folders(job)
    half_trained(job.only({str(old.path)}))
    (attempt,) = old.read()["attempts"]
    attempt["versions"]["torch"] = "1.0"
    old.update(attempts=[attempt])
    return job, old, fresh


def test_runs_of_other_versions_begin_but_do_not_continue(
    mixed: tuple[Job, RunFolder, RunFolder],
) -> None:
    """What is not continued says why; what is new is trained."""
    job, old, fresh = mixed
    assert approved(job, "refuse").folders == (str(fresh.path),)
    record = old.read()
    assert record["state"] == "interrupted"
    assert "torch 1.0, now" in record["error"]
    assert "--on-change continue" in record["error"]
    assert old.read_index()["last"] == 1


def test_on_change_is_for_machines_too(
    mixed: tuple[Job, RunFolder, RunFolder],
) -> None:
    """continue leaves all as it is, restart drops the epochs."""
    job, old, _ = mixed
    assert approved(job, "continue") == job
    assert old.read_index()["last"] == 1
    assert approved(job, "restart") == job
    assert old.read_index()["last"] is None


def test_a_run_that_is_set_aside_is_told_and_left(
    mixed: tuple[Job, RunFolder, RunFolder],
    image_hyps: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is not handed in again."""
    job, old, _ = mixed
    engine = FakeEngine(lambda job: train_job(approved(job, "refuse")))
    events = run(job, engine, image_hyps, monkeypatch)
    ends = {event.number: event for event in events if event.kind == "end"}
    assert ends[old.read()["number"]].state == "interrupted"
    assert sorted(event.state for event in ends.values()) == ["done", "interrupted"]
    assert len(engine.jobs) == 1


def test_a_machine_must_see_the_folder(job: Job, tmp_path: Path) -> None:
    """Or send its files to the driver; else it says so, and trains nothing."""
    mark = tmp_path / "nowhere" / "submissions" / "mark.json"
    with pytest.raises(StorageError, match=r"does not see .*/nowhere"):
        train_task(job, "refuse", str(mark))
    assert folders(job)[0].read()["attempts"] == []


# --- without a shared file system ---------------------------------------------------


class Direct:
    """An actor that is called at once; `answer` gives what it says."""

    def __init__(self, post: Post) -> None:
        self._post = post

    def __getattr__(self, name: str) -> Any:
        return types.SimpleNamespace(remote=getattr(self._post, name))


@pytest.fixture
def post(monkeypatch: pytest.MonkeyPatch) -> Direct:
    """What writes the folders of the driver."""
    monkeypatch.setattr(ray_post, "answer", lambda said: said)
    return Direct(Post())


def test_files_come_back_by_the_epoch(job: Job, post: Direct) -> None:
    """A stop leaves epochs with the driver, which holds the claims until the end."""
    left: list[int] = []

    def should_stop() -> bool:
        left[:] = [folder.read_index()["last"] or 0 for folder in folders(job)]
        return left == [1, 1]

    with pytest.raises(Interrupted):
        train_away(job, "refuse", post, should_stop)
    for folder in folders(job):
        assert folder.read()["state"] == "interrupted"
        assert [row["epoch"] for row in folder.epochs.read()] == [1]
        assert not Claim(folder.claim).acquire()
    train_away(job, "refuse", post, lambda: False)
    post.take_back.remote(job.folders)
    for folder in folders(job):
        assert folder.state() == "done"
        assert len(folder.read()["attempts"]) == 2
        index = folder.read_index()
        kept = {path.name for path in folder.checkpoints.glob("*.pt")}
        assert kept == set(index["files"])
        assert folder.read_checkpoint(index["best"])
        assert not folder.claim.exists()


def test_a_lost_machine_can_write_no_more(job: Job, post: Direct) -> None:
    """Once another one has the run."""
    (path, _) = job.folders
    first, lent = post.lend.remote([path])
    assert "run.json" in lent[path]
    second, _ = post.lend.remote([path])
    post.write.remote(second, path, {"log.txt": b"new"}, [])
    with pytest.raises(ClaimLost):
        post.write.remote(first, path, {"log.txt": b"old"}, [])
    assert RunFolder(Path(path)).log.read_bytes() == b"new"
    post.take_back.remote([path])


def test_runs_that_others_hold_do_not_travel(job: Job, post: Direct) -> None:
    """They are left out of the loan."""
    held = Claim(folders(job)[0].claim)
    assert held.acquire()
    _, lent = post.lend.remote(job.folders)
    assert list(lent) == [job.folders[1]]
    held.release()
    post.take_back.remote(job.folders)


def test_weights_in_the_folder_need_to_be_seen(job: Job, tmp_path: Path) -> None:
    """A machine that does not see what runs start from says so."""
    sweep = tmp_path / "nowhere"
    weights = {"init_weights_path": str(sweep / "init_weights" / "a.pt")}
    hyps = tuple(dict(one) | weights for one in job.hyps)
    job = dataclasses.replace(job, hyps=hyps)
    mark = str(sweep / "submissions" / "mark.json")
    with pytest.raises(StorageError, match="holds the weights of init_weights_path"):
        train_task(job, "refuse", mark, post=object())


# --- submissions --------------------------------------------------------------------


def test_submissions_are_found_until_they_are_over(job: Job, tmp_path: Path) -> None:
    """With the numbers of their runs; damaged records hold nothing up."""
    sweep = SweepFolder(tmp_path / "a sweep!")
    sweep.path.mkdir()
    one, other = (new_submission(sweep, "slurm", [[job], []]) for _ in range(2))
    for submission in (one, other, new_submission(sweep, "ray", [[job]])):
        submission.write()
    (sweep.submissions / "damaged.json").write_text("{")
    found = open_submissions(sweep, "slurm")
    assert {submission.name for submission in found} == {one.name, other.name}
    numbers = [folder.read()["number"] for folder in folders(job)]
    assert found[0].runs == [numbers, []]
    assert one.name.startswith("a_sweep__")
    one.close()
    assert [found.name for found in open_submissions(sweep, "slurm")] == [other.name]


def test_a_closed_submission_keeps_its_logs_alone(tmp_path: Path) -> None:
    """What could be run is removed."""
    sweep = SweepFolder(tmp_path)
    submission = new_submission(sweep, "slurm", [])
    submission.write()
    submission.files.mkdir()
    for name in ("1_0_log.out", "1_submitted.pkl", ".submission.sh"):
        (submission.files / name).write_text("")
    submission.close()
    assert [path.name for path in submission.files.iterdir()] == ["1_0_log.out"]
    assert json.loads(submission.path.read_text())["is_over"]
    assert isinstance(submission, Submission)


def test_a_job_that_is_held_is_waited_for(
    job: Job, image_hyps: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that somebody else trains by now is no death of its job."""
    claim = Claim(folders(job)[0].claim)
    n_asked = 0

    def work(job: Job) -> None:
        nonlocal n_asked
        n_asked += 1
        if n_asked == 1:
            assert claim.acquire()
        elif n_asked == 5:
            claim.release()
        elif n_asked > 5:
            train_job(job)

    engine = FakeEngine(work)
    events = run(job, engine, image_hyps, monkeypatch)
    assert [event.state for event in events if event.kind == "end"] == ["done"] * 2
