"""The comparison: every backend as a real process under real load, side by side and against what people use today."""
