"""LoRAs: domain adapters, MotionLoRAs and LoRAs of image models in kohya's format; imports files."""
