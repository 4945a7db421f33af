"""The drawn world: scenes of coloured shapes, what they are called, and how they look."""
