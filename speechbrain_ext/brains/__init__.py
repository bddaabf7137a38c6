"""What the recipes train."""
