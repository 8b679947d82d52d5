"""The embedded face detector: scenes composed from faces, and the network that learns from them."""
