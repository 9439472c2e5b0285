"""Encoders: models that turn images into embeddings, their files, and how they run on a host."""
