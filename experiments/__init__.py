"""What the numbers in docs/ come from: runs with seeds and spreads, speed and memory.

Nothing here is needed to train or to predict.
"""
