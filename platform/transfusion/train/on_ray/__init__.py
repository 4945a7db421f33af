"""Ray Train around the loop: all that `transfusion.train` knows of Ray."""
