"""What holds a request back: the caps of the recipe, the server's buckets as its headers tell them, and its refusals."""
