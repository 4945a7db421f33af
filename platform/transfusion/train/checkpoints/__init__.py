"""What a run keeps so that it can go on: written, committed, verified, read, and looked at by others."""
