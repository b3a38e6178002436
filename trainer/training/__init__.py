"""What the training loop is made of: batches, loss, optimizer step, memory, checkpoints, previews and export."""
