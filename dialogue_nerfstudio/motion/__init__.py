"""Generators of motion: what makes people move from sound alone, and how they are trained."""
