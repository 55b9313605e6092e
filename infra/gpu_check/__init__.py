"""Everything about the CUDA side in one run of minutes: `make gpu-check`. A program on top of the components; nothing
imports it."""
