"""The search cluster and its indexes."""
