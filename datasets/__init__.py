"""Where photos and labels come from. No model, no loss, no metric; `data.py` has `Split`."""
