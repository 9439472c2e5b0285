"""Parts that several jobs are built from."""
