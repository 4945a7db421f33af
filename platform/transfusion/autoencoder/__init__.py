"""KL autoencoders between pixels and latents: load, encode, decode, normalise. Plain torch."""
