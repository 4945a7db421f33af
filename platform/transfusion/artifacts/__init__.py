"""What stages hand to each other: one module a kind, over one manifest protocol."""
