"""The dense engines: each binds a model to an input, in float32 or less."""
