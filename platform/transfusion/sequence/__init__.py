"""From tokenized documents to packed batches: ids, layout, key ranges, positions."""
