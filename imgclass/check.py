"""What is in an image set, for `gridrun data check`."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from gridrun.analysis.tables import text_table
from gridrun.data_check import Report, size_text
from gridrun.hdf5 import chunks
from imgclass.datas import SPLITS, image_set_problems


def check_images(path: Path, file: Any) -> Report | None:
    """Everything about an image set; None if the file is something else."""
    if not any(f"{split}/images" in file for split in SPLITS):
        return None
    problems, class_names = image_set_problems(file)
    report = Report(path, problems=problems)
    facts = report.facts
    facts["kind"] = "images"
    facts["class_names"] = class_names
    for name in ("source", "licence", "citation", "augment"):
        if name in file.attrs:
            facts[name] = str(file.attrs[name])
    if problems:
        return report
    shapes = [list(file[f"{split}/images"].shape[1:]) for split in SPLITS]
    if shapes[0] != shapes[1]:
        report.problems.append(f"train has images of {shapes[0]}, test of {shapes[1]}")
    if 0 in shapes[0] + shapes[1]:
        report.problems.append(f"images of {shapes[0]} have no pixel")
    if report.problems:
        return report
    seen: dict[str, set[bytes]] = {}
    for split in SPLITS:
        facts[split], seen[split] = _split(file, split, len(class_names))
    shared = len(seen["train"] & seen["test"])
    if shared:
        report.warnings.append(
            f"{shared} different images stand in both train and test"
        )
    for split in SPLITS:
        n_again = facts[split]["n"] - len(seen[split])
        if n_again:
            report.warnings.append(f"/{split}/images: {n_again} stand there again")
    report.lines = _lines(facts)
    return report


def _split(file: Any, split: str, n_classes: int) -> tuple[dict[str, Any], set[bytes]]:
    """Sizes, levels per channel and counts per class, and a digest of each image."""
    images, labels = file[f"{split}/images"], file[f"{split}/labels"][:]
    n_channels = images.shape[1]
    counts = np.zeros((n_channels, 256), np.int64)
    whole = hashlib.sha256()
    digests = set()
    for _, part in chunks(images):
        whole.update(part.tobytes())
        digests |= {hashlib.sha256(image.tobytes()).digest() for image in part}
        for channel in range(n_channels):
            counts[channel] += np.bincount(part[:, channel].ravel(), minlength=256)
    shares = counts / counts.sum(1, keepdims=True)
    means = shares @ np.arange(256)
    squares = shares @ np.arange(256) ** 2
    facts = {
        "n": len(images),
        "shape": list(images.shape[1:]),
        "n_bytes": int(images.size),
        "mean": means.tolist(),
        "sd": np.sqrt(np.maximum(squares - means**2, 0)).tolist(),
        "n_per_class": np.bincount(labels, minlength=n_classes).tolist(),
        "sha256": {
            f"{split}/images": whole.hexdigest(),
            f"{split}/labels": hashlib.sha256(labels.tobytes()).hexdigest(),
        },
    }
    return facts, digests


def _lines(facts: dict[str, Any]) -> list[str]:
    lines = [f"{len(facts['class_names'])} classes of images"]
    for split in SPLITS:
        one = facts[split]
        levels = ", ".join(
            f"{mean:.1f} ± {sd:.1f}"
            for mean, sd in zip(one["mean"], one["sd"], strict=True)
        )
        lines.append(
            f"{split:5}  {one['n']:,} images of {'×'.join(map(str, one['shape']))}, "
            f"{size_text(one['n_bytes'])}; mean ± s.d. per channel {levels}"
        )
    names = facts["class_names"]
    rows = [
        {
            "class": name,
            "train": facts["train"]["n_per_class"][k],
            "test": facts["test"]["n_per_class"][k],
        }
        for k, name in enumerate(names)
    ]
    lines += text_table(rows).splitlines()
    lines.append(f"augment auto: {facts.get('augment', '[]')}")
    lines += [
        f"{name}: {facts[name]}" for name in ("source", "licence") if name in facts
    ]
    hashes = {**facts["train"]["sha256"], **facts["test"]["sha256"]}
    lines += [f"sha256 {value[:16]}…  {name}" for name, value in hashes.items()]
    return lines
