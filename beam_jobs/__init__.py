"""How the data moves: one Beam pipeline a file, runnable alone (`python -m beam_jobs.NAME --help`)."""
