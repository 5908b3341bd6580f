"""The keys of a recipe, described for editors and for people."""
