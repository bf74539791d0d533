"""Published checkpoints: configs read strictly, weights checked, every value with the key it came from."""
