"""What any training program has and no paper speaks of. No model, label graph or metric."""
