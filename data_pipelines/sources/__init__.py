"""Where documents come from: one module a source, each with its config, its listing and its reader."""
