"""One file an endpoint: a function that adds its routes for a service."""
