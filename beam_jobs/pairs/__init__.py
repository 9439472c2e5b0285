"""The stages of `sample_pairs`: rules, listings, photos, twins, shards, sessions, counts."""
