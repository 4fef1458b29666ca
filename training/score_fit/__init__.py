"""Fitting the few weights of the fused score to what helps the answer."""
