"""Ray Data work: one folder a stage, one file a source."""
