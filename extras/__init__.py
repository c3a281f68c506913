"""What stands around the paper's method: where data come from, tables, pictures, other formats.

No model, loss or metric here, and no reader of a data set's files: those are the top level's.
"""
