"""A mixture plan and a position in, packed batches out. Plain torch and pyarrow, no Ray."""
