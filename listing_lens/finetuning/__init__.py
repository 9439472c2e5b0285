"""The fine-tuning program, and the records that it leaves in the lake."""
