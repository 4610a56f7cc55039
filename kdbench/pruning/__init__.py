"""Smaller networks from trained ones: channels, blocks, single weights, ranks."""
