"""Data that says what was done to it, and the ways that arrays and files become such."""
