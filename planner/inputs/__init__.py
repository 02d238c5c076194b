"""What the model is and how it is trained: ModelSpec, Setup, families, the catalog, the hub."""
