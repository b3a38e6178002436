"""Base models read from folders and single files, with text encoders and VAEs from files of their own."""
