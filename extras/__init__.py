"""What a user of the paper's method wants around it, and the method does without.

    demo           cartoon scenes, drawn as a COCO tree
    download       COCO from its own server
    table          the numbers of a model, and ours beside the paper's
    graph_picture  label graph and embeddings as heat maps
    tensorboard    what --tensorboard shows
    pictures       photos with their labels beneath, contact sheets
    export         a model as .onnx or .pt2

Nothing here decides a trained model's numbers: without this room they would be the same.
"""
