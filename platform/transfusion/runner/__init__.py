"""Walking a plan here, or handing it to a cluster."""
