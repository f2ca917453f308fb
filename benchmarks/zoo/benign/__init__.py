"""What honest people do to text towers, one file each."""
