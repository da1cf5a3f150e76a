"""What is optimized."""
