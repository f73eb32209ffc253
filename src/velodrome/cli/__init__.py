"""The command line: one file a verb. torch is imported inside the verbs, so that `--help` answers at once."""
