"""config.json of well-known models, in the shape in which their publishers ship it, with aliases."""
