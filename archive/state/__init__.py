"""What a model holds, found, named and put back."""
