"""The page. It starts workers and reads run folders; it never loads a model."""
