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
        sweepable=False,
    )
    model_args: dict[str, Any] = key(
        {},
        "arguments of a plug-in or imported model that are no keys",
        group="runner",
    )
    dataset_args: dict[str, Any] = key(
        {}, "arguments of a plug-in or imported data set", group="runner"
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
        None,
        "data set whose training samples are validated on (recordings: "
        "dataset/stim_type); val_p and val_loc rest then",
        group="runner",
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
        None,
        "corruption of normalised inputs in training: gaussian, jitter, dropout, or a "
        "plug-in",
        group="runner",
    )
    distorter_args: dict[str, Any] = key(
        {},
        "gaussian {std}, jitter {pixels}, dropout {p}; of a plug-in its own",
        group="runner",
    )
    augmenters: list[str | dict[str, Any]] = key(
        [],
        "transforms of input and target together, in training, in order: names or "
        '{"class", "args"}; images also flip, crop, jitter, rotate',
        group="runner",
    )
    use_preset: bool = key(
        False,
        "pair data: read stored inputs; false: the targets, distorted, are the inputs",
        group="runner",
    )
    loss_space: Literal["default", "original"] = key(
        "default",
        "pair data: training loss of normalised values, or after the inverse",
        group="runner",
    )
    eval_space: Literal["default", "original"] = key(
        "default",
        "pair data: evaluation of normalised values, or after the inverse",
        group="runner",
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
        "validation samples whose predictions are saved at every evaluation",
        group="runner",
        identity="no",
    )
    val_example_subset: str = key(
        "DEFAULT",
        "subset of the data set that these indices count in; DEFAULT: validation",
        group="runner",
        identity="no",
    )
    show_plots: bool = key(
        False,
        "draw these samples at every evaluation, as examples.png and live in a "
        "notebook or window",
        group="runner",
        identity="no",
    )
    verbose: bool = key(
        False, "a line for every epoch of a run", group="runner", identity="no"
    )
    trackers: list[str] = key(
        [],
        "tensorboard, wandb, mlflow or a plug-in; tables in any case",
        group="runner",
        identity="no",
    )
    tracker_args: dict[str, Any] = key(
        {}, "arguments by tracker", group="runner", identity="no"
    )
    diagnostics: list[str | dict[str, Any]] = key(
        [],
        'figures computed while training: names or {"name", "every", "at", "args"}',
        group="runner",
        identity="no",
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
        "folder of plug-in files; null: plugins/ beside hyperparams.json, if there",
        group="runner",
        identity="no",
        is_path=True,
    )
    executor: Literal["serial", "process", "slurm", "ray"] = key(
        "process",
        "what trains: this process, worker processes, or a cluster",
        group="runner",
        identity="no",
    )
    executor_args: dict[str, Any] = key(
        {},
        "options of a cluster: slurm partition, account, qos, constraint, time, mem, "
        "cpus_per_task, gpus_per_node, max_parallel, max_array_size, setup, extra; ray "
        "address, num_cpus, num_gpus, resources, max_retries",
        group="runner",
        identity="no",
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
        "how a cohort computes gradients: solo, run by run; on GPUs also graph (from "
        "CUDA graphs) or stacked (runs of one objective together); auto: solo",
        group="runner",
        identity="guard",
    )
    conv_method: Literal["auto", "direct", "fourier"] = key(
        "auto",
        "how convolutions without padding and strides are computed; auto: by a fixed "
        "rule of their shape",
        group="runner",
        identity="guard",
    )
