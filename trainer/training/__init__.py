"""Parts of the training loop: batches, loss, optimizer step, memory, checkpoints, previews and export."""
