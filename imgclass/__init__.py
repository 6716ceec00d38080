"""Image classifiers."""

from gridrun.plugins import Library

LIBRARY = Library(
    name="imgclass",
    hyperparams="imgclass.hyperparams:ImageHyperparams",
    models="imgclass.models",
    trainer="imgclass.trainer:ImageTrainer",
    data_commands={"import": "imgclass.importers"},
    data_check="imgclass.check:check_images",
)
