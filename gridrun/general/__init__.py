"""The library of a user's own models and data sets, which are plug-ins."""

from gridrun.plugins import Library

LIBRARY = Library(
    name="general",
    hyperparams="gridrun.general.hyperparams:GeneralHyperparams",
    models="",
    trainer="gridrun.general.trainer:GeneralTrainer",
)
