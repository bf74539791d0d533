"""`diagnose`: from a model to what broke, which change to try first, and what everything rests on."""
