"""Embedders and their encoders, as the lake, the indexes and the registry name them."""
