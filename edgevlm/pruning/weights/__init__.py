"""Weight pruning: zeros in the decoder, fewer layers, channels and tokens, and the training that heals."""
