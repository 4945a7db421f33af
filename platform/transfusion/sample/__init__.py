"""Text, images and both interleaved from a model package. Plain torch: no Ray, no HTTP."""
