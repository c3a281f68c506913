"""What the numbers in docs/ come from. Nothing that is needed to train or to predict."""
