"""What any training program has and no paper speaks of.

Nothing here knows labels, graphs or metrics: that is the paper's, at the top level.
"""
