"""Layers that both libraries use."""

from gridrun.nn.activations import ParametricSoftplus
from gridrun.nn.fourier import (
    EitherMethod,
    Spectrum,
    ValidConv2d,
    chosen_methods,
    flat_transform,
    fourier_conv2d,
    set_method,
)
from gridrun.nn.noise import Dropout, GaussianNoise, RandomModule, Tape
from gridrun.nn.norms import AbsBatchNorm1d, AbsBatchNorm2d, FlatBatchNorm
from gridrun.nn.retinotopy import (
    GrabUnits,
    OneHot,
    central_place,
    field_side,
    semantic_loss,
)
from gridrun.nn.shakes import ShakeShake
from gridrun.nn.stacked import LinearStackedConv2d, collapse_stacks, valid_map

__all__ = [
    "AbsBatchNorm1d",
    "AbsBatchNorm2d",
    "Dropout",
    "EitherMethod",
    "FlatBatchNorm",
    "GaussianNoise",
    "GrabUnits",
    "LinearStackedConv2d",
    "OneHot",
    "ParametricSoftplus",
    "RandomModule",
    "ShakeShake",
    "Spectrum",
    "Tape",
    "ValidConv2d",
    "central_place",
    "chosen_methods",
    "collapse_stacks",
    "field_side",
    "flat_transform",
    "fourier_conv2d",
    "semantic_loss",
    "set_method",
    "valid_map",
]
