"""Measures gridrun against what users would write instead; see README.md."""
