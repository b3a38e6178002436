"""Images from a base model and adapters: the sampler, its server process, and PNG metadata."""
