"""The stages of `verify_index`: what is known beforehand, rows, sample, probes, reconciling, neighbours, surplus, repair."""
