"""Hooks own the clients."""
