"""Colors, fonts and drawing primitives, for Pillow and for matplotlib.

Imports no other package of `runners`.
"""
