"""Fine-tuning an encoder on pairs of the lake: the program, and the records that it leaves."""
