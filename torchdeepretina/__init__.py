"""Convolutional models of the retina that predict firing rates from movies."""

from gridrun.plugins import Library

LIBRARY = Library(
    name="torchdeepretina",
    hyperparams="torchdeepretina.hyperparams:RetinaHyperparams",
    models="torchdeepretina.models",
    trainer="torchdeepretina.trainer:RetinaTrainer",
    data_commands={"simulate": "torchdeepretina.simulate"},
    data_check="torchdeepretina.check:check_recording",
)
