"""Encoders: what an image becomes an embedding by, where its files lie, and how it runs on a host."""
