"""Facts about each family of base models, as `FamilySpec`. Torch-free."""
