"""A model package behind an OpenAI-shaped endpoint, on Ray Serve."""
