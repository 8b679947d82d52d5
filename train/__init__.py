"""Training of CAF. It imports vafer; vafer never imports it."""
