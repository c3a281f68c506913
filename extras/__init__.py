"""What stands around the paper's method: where data come from, tables, pictures, other formats.

    datasets       the data sets by name: where their files lie, checked and described
    own_data       people's own photos and labels
    frozen         features of a backbone that is not trained
    expected       how long a run will take
    calibration    scores that mean something
    activation_maps  where in a photo a score comes from
    demo           cartoon scenes, drawn as a COCO tree
    download       COCO from its own server
    table          the numbers of a model, and ours beside the paper's
    graph_picture  the label graph as a heat map
    pictures       photos with their labels beneath, contact sheets
    export         a model as .onnx or .pt2

No model, loss or metric here, and no reader of a data set's files: those are the top level's.
"""
