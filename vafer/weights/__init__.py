"""Weights that ship with vafer, each beside the card that says what it is."""
