"""One transformer over text and image patches, and its adapters. Knows nothing of a cluster."""
