"""Operators: keywords in, one call of a hook."""
