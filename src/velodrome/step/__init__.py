"""One update: losses and optimizers by name, checks of the first batch, and the engine that runs it."""
