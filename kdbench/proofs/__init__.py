"""Whether a number is what it claims to be: where time goes (`profile`), and in which precision a backend computes."""
