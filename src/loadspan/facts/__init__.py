"""What the machine says: small readers, each absent where the kernel does not tell."""
