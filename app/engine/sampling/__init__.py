"""Sampling: parameters, samplers, grammars, log-probabilities and watermarks."""
