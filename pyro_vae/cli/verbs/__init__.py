"""The verbs of the command line: one file each, its function ``run_<verb>``."""
