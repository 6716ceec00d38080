"""Reading sweeps: tables, statistics over repeats, models; loads no torch by itself."""
