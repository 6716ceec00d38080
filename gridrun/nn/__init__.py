"""Layers that both libraries use."""

from gridrun.nn.noise import Dropout, GaussianNoise, RandomModule
from gridrun.nn.norms import AbsBatchNorm1d, AbsBatchNorm2d, FlatBatchNorm
from gridrun.nn.retinotopy import GrabUnits
from gridrun.nn.stacked import LinearStackedConv2d, valid_map

__all__ = [
    "AbsBatchNorm1d",
    "AbsBatchNorm2d",
    "Dropout",
    "FlatBatchNorm",
    "GaussianNoise",
    "GrabUnits",
    "LinearStackedConv2d",
    "RandomModule",
    "valid_map",
]
