"""Looks into a model during training; importing this loads no torch.

A diagnostic is a function `(model, batch, context, **args)` that returns scalars,
arrays and matplotlib figures by name. It owns the model it is given, a copy in eval
mode, and draws random numbers from `context.generator` only.
"""

from gridrun.diagnostics.context import Context, NotApplicable, Samples
from gridrun.diagnostics.registry import (
    DIAGNOSTICS,
    Schedule,
    diagnostic_problems,
    load_diagnostic,
)
from gridrun.diagnostics.storage import save_result

__all__ = [
    "DIAGNOSTICS",
    "Context",
    "NotApplicable",
    "Samples",
    "Schedule",
    "diagnostic_problems",
    "load_diagnostic",
    "save_result",
]
