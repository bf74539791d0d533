"""Configurations run over tasks: programs, losses, faults, fitted biases, costs, and what is kept of them."""
