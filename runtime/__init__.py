"""What every training program needs and no paper describes. No model, label graph or metric."""
