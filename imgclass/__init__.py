"""Image classifiers."""

from gridrun.plugins import Library

LIBRARY = Library(
    name="imgclass",
    hyperparams="imgclass.hyperparams:ImageHyperparams",
    models="imgclass.models",
    trainer="imgclass.trainer:ImageTrainer",
)
