"""Reading and scoring images of the drawn world, with no knowledge of how they were drawn."""
