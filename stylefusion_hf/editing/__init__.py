"""Finding directions and style channels."""
