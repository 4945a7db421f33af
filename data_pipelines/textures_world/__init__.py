"""The drawn world of continuous values: one striped object, of any hue and its stripes of any direction."""
