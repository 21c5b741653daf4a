"""Training and detection."""
