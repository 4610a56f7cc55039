"""The gate: two measurements side by side, and what has become worse by more than its bound."""
