"""What stands around the paper's method: where data come from, tables, pictures, other formats.

The paper's model, loss and metrics, and the readers of its data sets, are the top level's.
"""
