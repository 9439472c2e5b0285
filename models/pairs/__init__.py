"""The rules by which image–title pairs are sampled for training: which titles say nothing, what is split off, what is a twin.

Everything follows from the listing's own content and a salt, by hashes that are the same in every process and on every
machine: a sample made again is the same, and a larger one contains the smaller.
"""
