"""What users would write instead of gridrun: plain PyTorch, and tools that start it.

They take from gridrun the configuration and the arrays of a data file, nothing else.
"""
