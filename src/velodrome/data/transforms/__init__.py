"""Random and fixed changes of whole batches, each sample's a function of (seed, epoch, index).

`base` says what a transform is, `counters` where its random numbers come from, `tables` what is looked up, `arguments` what is refused; `geometry`,
`affine`, `resizing`, `values`, `colors`, `erasing` and `mixing` are the transforms. `applied` gives them to a loader's batches; `function` does the
same for a plain function, whose random numbers belong to the batch.
"""
