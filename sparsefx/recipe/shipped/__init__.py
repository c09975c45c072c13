"""The recipes that come with sparsefx, as YAML files; read them by ``Recipe.shipped(name)``."""
