"""Fine-tuning an encoder on image–title pairs: the loss, large batches, the data, the training loop and its validation."""
