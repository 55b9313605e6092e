"""How weight files get damaged or forged, each way done to a sound file in place.

A mutation takes hypothesis' `draw` and the path. By module: bytes of any file; length, text, table and metadata of a
safetensors header; tensors, written back as a valid file; what a pickle holds, and the members of its zip; whole other
files, a folder's config, and any of these.
"""
