"""Models written from the description of adoption alone, by someone who had not seen how it works."""
