"""Triggers: what is waited for."""
