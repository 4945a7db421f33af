"""What raw input holds: format, columns, examples, and what a source would make of it. No Ray, no torch."""
