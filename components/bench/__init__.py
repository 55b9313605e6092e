"""How fast a training steps, beside the official step and the bare UNet; imports the folders below it."""
