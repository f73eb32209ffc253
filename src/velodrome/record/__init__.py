"""What a run leaves behind: its directory, its journal, and what is fed from it: CSV, TensorBoard."""
