"""Figures and heat maps, as PNG and SVG."""
