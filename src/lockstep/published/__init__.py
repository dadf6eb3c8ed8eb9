"""What a published file is made of: `publish` builds a file with the `Builder` of `publication`."""
