"""Metadata, dependencies, extras and commands; tool settings are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
init = (HERE / "gridrun" / "__init__.py").read_text(encoding="utf-8")
version = re.search(r'^__version__ = "(.+)"$', init, re.MULTILINE)
if version is None:
    raise RuntimeError("gridrun/__init__.py states no __version__")

TRACKERS = {
    "tensorboard": ["tensorboard"],
    "wandb": ["wandb>=0.30"],
    "mlflow": ["mlflow-skinny>=3", "sqlalchemy", "alembic"],
}
CLUSTERS = {"slurm": ["submitit>=1.5"], "ray": ["ray>=2.60"]}
OPTIONAL = TRACKERS | CLUSTERS
TEST = ["pytest>=8", "pytest-xdist", "hypothesis", "nbclient", "nbformat", "ipykernel"]

setup(
    name="gridrun",
    version=version[1],
    description="Hyperparameter grids for PyTorch: resumable, repeated, fast; "
    "with models of the retina and image classifiers",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(
        include=[
            "gridrun*",
            "torchdeepretina*",
            "imgclass*",
        ]
    ),
    package_data={
        "gridrun": ["py.typed", "template/*", "template/plugins/*/*.py"],
    },
    install_requires=[
        "torch>=2.10",
        "numpy>=1.24",
        "h5py",
        "scipy",
        "tqdm",
        "pydantic>=2.7",
        "pandas",
        "matplotlib",
        "pillow",
    ],
    extras_require={
        "notebook": ["ipykernel", "nbclient", "ipywidgets"],
        **OPTIONAL,
        "trackers": [one for some in TRACKERS.values() for one in some],
        "test": [*TEST, *(one for some in OPTIONAL.values() for one in some)],
        "dev": [*TEST, "ruff", "mypy", "pre-commit", "pytest-cov"],
    },
    entry_points={
        "console_scripts": [
            "gridrun = gridrun.cli:main",
            "train = gridrun.cli:train",
            "evaluate = gridrun.cli:evaluate",
        ],
        "gridrun.libraries": [
            "torchdeepretina = torchdeepretina:LIBRARY",
            "imgclass = imgclass:LIBRARY",
            "general = gridrun.general:LIBRARY",
        ],
    },
    classifiers=[
        "Programming Language :: Python :: 3.11",
        "Intended Audience :: Science/Research",
        "Topic :: Scientific/Engineering",
    ],
)
