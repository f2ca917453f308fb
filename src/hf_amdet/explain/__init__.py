"""What the trigger is, what it wants, and where in the network it works."""
