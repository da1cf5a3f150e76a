"""Discovery of symmetries from gradients of a loss, with certificates."""
