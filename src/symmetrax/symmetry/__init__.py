"""What leaves a loss unchanged."""
