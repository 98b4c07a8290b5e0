"""Files of published data sets: where they lie, how they come, and whether they are right."""
