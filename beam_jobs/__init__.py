"""The Beam pipelines: one per file, each runnable on its own (`python -m beam_jobs.NAME --help`)."""
