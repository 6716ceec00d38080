"""The options of the runner, which every library has (section 6b of the reference)."""

from __future__ import annotations

from typing import Any, Literal

from gridrun.config.declare import StrictModel, key


class RunnerKeys(StrictModel):
    """How runs are started, recorded and watched; and data options of plug-ins."""

    library: str | None = key(
        None,
        "the library whose keys apply; null: the one that has model_type",
        group="runner",
    )
    model_args: dict[str, Any] = key(
        {}, "arguments of a plug-in model", group="runner", available=False
    )
    dataset_args: dict[str, Any] = key(
        {}, "arguments of a plug-in data set", group="runner", available=False
    )
    seeds: list[int] | None = key(
        None,
        "seed of each repeat, instead of seed and n_repeats",
        group="runner",
        identity="no",
    )
    bootstrap: int = key(
        0,
        "number of resamples of the training data, instead of n_repeats",
        group="runner",
        identity="no",
        ge=0,
    )
    bootstrap_index: int | None = key(
        None,
        "resample of a run; written by the runner",
        group="runner",
        ge=0,
    )
    init_weights_path: str | None = key(
        None,
        "checkpoint whose weights every run starts from; kept beside the runs under "
        "its SHA-256",
        group="runner",
        is_path=True,
    )
    precision: Literal["float32", "bfloat16", "float64"] = key(
        "float32",
        "bfloat16: forward pass and loss in it, weights in float32; float64: all",
        group="runner",
    )
    grad_clip: float | None = key(
        None,
        "largest total L2 norm of the gradient",
        group="runner",
        gt=0,
    )
    early_stop_min_delta: float = key(
        0.0,
        "an improvement must exceed this to count for early stopping",
        group="runner",
        ge=0,
    )
    val_set: str | None = key(
        None, "data set to validate on", group="runner", available=False
    )
    train_set_size: int | None = key(
        None, "only the first n training samples", group="runner", ge=1
    )
    val_set_size: int | None = key(
        None,
        "only the first n validation samples",
        group="runner",
        ge=1,
    )
    distorter: str | None = key(
        None, "corruption of training inputs", group="runner", available=False
    )
    distorter_args: dict[str, Any] = key(
        {}, "arguments of the distorter", group="runner", available=False
    )
    augmenters: list[Any] = key(
        [], "transforms of training samples, in order", group="runner", available=False
    )
    use_preset: bool = key(
        False,
        "pair data: read stored inputs",
        group="runner",
        available=False,
    )
    loss_space: Literal["default", "original"] = key(
        "default",
        "pair data: where the loss is computed",
        group="runner",
        available=False,
    )
    eval_space: Literal["default", "original"] = key(
        "default",
        "pair data: where metrics are computed",
        group="runner",
        available=False,
    )
    log_frequency: int = key(
        1,
        "evaluations per epoch",
        group="runner",
        identity="no",
        ge=1,
    )
    log_loss: bool = key(
        False,
        "record the loss of every batch",
        group="runner",
        identity="no",
    )
    log_grad: bool = key(
        False,
        "record the gradient's norm of every batch",
        group="runner",
        identity="no",
    )
    val_example_indices: list[int] = key(
        [],
        "validation samples whose predictions are saved",
        group="runner",
        identity="no",
        available=False,
    )
    val_example_subset: str = key(
        "DEFAULT",
        "named subset that holds them",
        group="runner",
        identity="no",
        available=False,
    )
    show_plots: bool = key(
        False,
        "live plot of those samples",
        group="runner",
        identity="no",
        available=False,
    )
    verbose: bool = key(
        False, "a line for every epoch of a run", group="runner", identity="no"
    )
    trackers: list[str] = key(
        [],
        "tensorboard, wandb, mlflow; CSV always",
        group="runner",
        identity="no",
        available=False,
    )
    tracker_args: dict[str, Any] = key(
        {}, "arguments by tracker", group="runner", identity="no", available=False
    )
    diagnostics: list[Any] = key(
        [],
        "figures computed every few epochs",
        group="runner",
        identity="no",
        available=False,
    )
    save_root: str | None = key(
        None,
        "folder that holds the sweep's folder; null: the working directory",
        group="runner",
        identity="no",
        is_path=True,
    )
    plugins: str | None = key(
        None,
        "folder of plug-in files",
        group="runner",
        identity="no",
        available=False,
        is_path=True,
    )
    executor: Literal["serial", "process", "slurm", "ray"] = key(
        "process",
        "what trains: this process, worker processes, or a cluster",
        group="runner",
        identity="no",
        available=("serial", "process"),
    )
    executor_args: dict[str, Any] = key(
        {},
        "options of a cluster",
        group="runner",
        identity="no",
        available=False,
    )
    workers: Literal["auto"] | int = key(
        "auto",
        "worker processes; auto: one per usable core, or per GPU",
        group="runner",
        identity="no",
    )
    cohort_size: Literal["auto"] | int = key(
        "auto", "most runs trained side by side", group="runner", identity="no"
    )
    spectra_cache_mib: Literal["auto"] | int = key(
        "auto",
        "MiB a process may take for the Fourier transforms of a recording; 0: none "
        "are kept",
        group="runner",
        identity="no",
    )
    max_attempts: int = key(
        3,
        "attempts in a row without a new epoch for runs whose worker died",
        group="runner",
        identity="no",
        ge=1,
    )
    hang_timeout_s: float = key(
        1800.0,
        "a worker that reports nothing for so long is killed",
        group="runner",
        identity="no",
        gt=0,
    )
    claim_timeout_s: float = key(
        120.0,
        "a claim of another host is dead when unchanged for so long",
        group="runner",
        identity="no",
        ge=10,
    )
    threads: int = key(
        1,
        "CPU threads per worker; another count gives other bits",
        group="runner",
        identity="guard",
        ge=1,
    )
    device: str = key(
        "auto",
        "auto (cuda if there), cpu, cuda or cuda:i",
        group="runner",
        identity="guard",
        pattern=r"^(auto|cpu|cuda(:\d+)?)$",
        expected='"auto", "cpu", "cuda" or "cuda:0", "cuda:1", ...',
    )
    engine: Literal["auto", "solo", "graph", "stacked"] = key(
        "auto",
        "how a cohort's steps are run",
        group="runner",
        identity="guard",
        available=("auto", "solo"),
    )
    conv_method: Literal["auto", "direct", "fourier"] = key(
        "auto",
        "how convolutions without padding and strides are computed; auto: by a fixed "
        "rule of their shape",
        group="runner",
        identity="guard",
    )
