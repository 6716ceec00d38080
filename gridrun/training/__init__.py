"""Training of cohorts; everything here imports torch."""
