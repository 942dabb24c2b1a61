"""Speed, beside something run at the same time: every figure is a ratio."""
