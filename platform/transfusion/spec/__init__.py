"""Reading, checking, ordering and fingerprinting a job file. Starts nothing; imports neither torch nor Ray."""
