"""Networks that no library ships: discriminator heads and tiny stand-ins for full-size models."""
