"""Auto-Encoding Variational Bayes in Pyro."""
