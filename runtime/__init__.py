"""What any training program has and no paper speaks of.

Nothing here knows the model, its graph or its metrics: those are the top level's.
"""
