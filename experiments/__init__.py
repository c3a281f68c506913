"""What the numbers in docs/ come from: runs with seeds and spreads, speed and memory.

    evidence  Table 3 with seeds; figures in results/
    subset    its photos, laid out from COCO
    bench     speed and memory beside timm's

Nothing here is needed to train or to predict.
"""
