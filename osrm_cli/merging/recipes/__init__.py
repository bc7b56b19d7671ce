"""Recipes: what a merge is made of, from our own YAML and from mergekit's."""
