"""Stage: train the transformer on a mixture."""
