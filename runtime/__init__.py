"""What any training program has and no paper speaks of.

    text         text from outside made printable, and the line of progress
    reading      JSON, photos, CSV and word vectors, checked once, while they are read
    checkpoints  files of tensors, read as plain data and written whole or not at all
    folder       the run's folder: its lock, and what in it may be used again
    loading      batches: each rank's part, from any step on, on the device
    journal      where a training goes on, what it saves and logs; the pass over all photos
    ranks        the processes that torchrun starts
    signals      how a run is stopped, and that it ends
    options      types of command-line options, and the device
    lean         layers that keep less for backward

Nothing here knows labels, graphs or metrics: that is the paper's, at the top level.
"""
