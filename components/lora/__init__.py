"""Low-rank adaptation: domain adapters, MotionLoRAs and kohya's LoRAs; imports files."""
