"""What a run tells people: tables, pictures, forecasts, exports. Nothing here trains a model."""
