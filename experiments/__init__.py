"""The programs behind the numbers in docs/. Nothing here is needed to train or to predict."""
