"""Recipes: a TOML file becomes a checked schema, then ready objects (model, data, Trainer arguments)."""
