"""Pages: drawn from JSON alone, without scripts, without anything from elsewhere."""
