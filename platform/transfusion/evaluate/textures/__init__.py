"""Reading and scoring images of the world of striped objects, with no knowledge of how they were drawn."""
