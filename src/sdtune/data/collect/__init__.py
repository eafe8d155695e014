"""Collecting pictures from the network, with who made them and under which licence. Imports no torch."""
