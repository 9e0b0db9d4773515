"""Files of others -> our model folders, and back: what the converters of several families share."""
