"""Several methods on the same clients, samples, rounds and evaluation."""
