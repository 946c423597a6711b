"""What gradients say of a patch before it is made."""
