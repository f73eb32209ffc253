"""Several processes that train one model: the world they form, its gradient sums, its failures, its launcher."""
