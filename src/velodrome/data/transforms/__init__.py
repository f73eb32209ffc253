"""Random and fixed changes of whole batches, each sample's a function of (seed, epoch, index)."""
