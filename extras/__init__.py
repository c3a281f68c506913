"""What stands around the method: data sets, tables, pictures, formats. No model, loss or metric."""
