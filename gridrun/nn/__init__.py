"""Layers that both libraries use."""

from gridrun.nn.activations import ParametricSoftplus
from gridrun.nn.noise import Dropout, GaussianNoise, RandomModule
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
    "FlatBatchNorm",
    "GaussianNoise",
    "GrabUnits",
    "LinearStackedConv2d",
    "OneHot",
    "ParametricSoftplus",
    "RandomModule",
    "ShakeShake",
    "central_place",
    "collapse_stacks",
    "field_side",
    "semantic_loss",
    "valid_map",
]
