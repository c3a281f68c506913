"""What the numbers in docs/ come from: runs with seeds and spreads, speed and memory.

    evidence  Table 3 fine-tuned, with seeds; figures in results/
    frozen    heads on the features of a frozen backbone
    scores    calibration and thresholds
    subset    its photos' labels, picked out of COCO's
    bench     speed and memory beside timm's

Nothing here is needed to train or to predict.
"""
