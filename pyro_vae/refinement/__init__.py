"""Draws of the posterior that are better than the guide's."""
