"""A virtual retina whose true responses are known: movies, spikes and files."""

from torchdeepretina.simulate.files import add_arguments, main, simulate
from torchdeepretina.simulate.recipe import SIZES, Recipe, Size
from torchdeepretina.simulate.recording import fit_retina
from torchdeepretina.simulate.retina import Calibration, Grey, Retina, respond
from torchdeepretina.simulate.truth import read_truth

__all__ = [
    "SIZES",
    "Calibration",
    "Grey",
    "Recipe",
    "Retina",
    "Size",
    "add_arguments",
    "fit_retina",
    "main",
    "read_truth",
    "respond",
    "simulate",
]
