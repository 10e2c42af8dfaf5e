"""What a step needs of a machine that need not be here."""
