"""What there is to compute: operations, taken from a Program or from an encoder's sizes."""
