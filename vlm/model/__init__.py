"""Vision transformer, projector, decoder.

Shapes: B pictures, N image positions, T text positions, C width, V tokens.
"""
